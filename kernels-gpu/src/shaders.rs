//! The compiled shaders: GLSL in `shaders/`, SPIR-V in `spv/`, made by `shaders/build.sh`.

macro_rules! shaders {
    ($($name:ident $file:literal),* $(,)?) => {
        /// A compute shader.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Shader { $($name),* }

        impl Shader {
            #[cfg(test)]
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $file),* }
            }

            /// SPIR-V, little-endian.
            pub fn code(self) -> &'static [u8] {
                CODES[self as usize]
            }
        }

        /// Of each shader, in the order of their names: a static, as every part of a program has constants of its own.
        static CODES: &[&[u8]] = &[$(include_bytes!(concat!("../spv/", $file, ".spv"))),*];
    };
}

shaders! {
    Attention "attention",
    AttentionBackward "attention_backward",
    AttentionBackwardBf16 "attention_backward_bf16",
    AttentionBackwardF16 "attention_backward_f16",
    AttentionBf16 "attention_bf16",
    AttentionF16 "attention_f16",
    AttentionSums "attention_sums",
    Cast "cast",
    Columns "columns",
    Conv "conv",
    ConvBf16 "conv_bf16",
    ConvF16 "conv_f16",
    ConvWeight "conv_weight",
    Copy "copy",
    Dropout "dropout",
    Gather "gather",
    Gemm "gemm",
    GemmBf16 "gemm_bf16",
    GemmF16 "gemm_f16",
    LayerNorm "layer_norm",
    LayerNormBackward "layer_norm_backward",
    Map "map",
    MapBackward "map_backward",
    MaxPool "max_pool",
    MaxPoolBackward "max_pool_backward",
    NormSums "norm_sums",
    Scatter "scatter",
    Softmax "softmax",
    SoftmaxBackward "softmax_backward",
    Step "step",
    SumCols "sum_cols",
    SumRows "sum_rows",
    Transpose "transpose",
    Zip "zip",
}

impl Shader {
    /// Whether it has cooperative matrices, whose subgroups have to be full.
    pub fn has_matrices(self) -> bool {
        use Shader::{AttentionBackwardBf16, AttentionBackwardF16, AttentionBf16, AttentionF16};
        let attention = matches!(self, AttentionBackwardBf16 | AttentionBackwardF16 | AttentionBf16 | AttentionF16);
        attention || matches!(self, Self::ConvBf16 | Self::ConvF16 | Self::GemmBf16 | Self::GemmF16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::path::Path;

    fn hash(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The manifest says of which source each module was made: a source that was changed since, or a module that is not the one, fails.
    #[test]
    fn no_module_is_stale() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(root.join("spv/manifest.txt")).unwrap();
        let files = |folder: &str, end: &str| {
            let entries = std::fs::read_dir(root.join(folder)).unwrap().map(|e| e.unwrap().path());
            let mut paths: Vec<_> = entries.filter(|p| p.to_str().unwrap().ends_with(end)).collect();
            paths.sort();
            paths
        };
        let includes: Vec<u8> = files("shaders/inc", ".glsl").iter().flat_map(|p| std::fs::read(p).unwrap()).collect();
        let mut expected: Vec<String> = manifest.lines().skip(1).map(str::to_owned).collect();
        expected.sort();
        let mut found: Vec<String> = files("shaders", ".comp")
            .iter()
            .map(|path| {
                let name = path.file_stem().unwrap().to_str().unwrap();
                let source = [std::fs::read(path).unwrap(), includes.clone()].concat();
                let shader = Shader::ALL.iter().find(|s| s.name() == name).expect("a line in shaders!");
                format!("{name} {} {}", hash(&source), hash(shader.code()))
            })
            .collect();
        found.sort();
        assert_eq!(found, expected, "run kernels-gpu/shaders/build.sh");
        assert_eq!(found.len(), Shader::ALL.len());
    }
}
