//! Residual network (He et al. 2016) with torchvision's parameter names and its place of the stride, the 3 x 3 convolution.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{MAX_SIZE, check_most};
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::nn::{ConvNorm, Linear, Module, Noted, Params, Statistics, join};
use crate::ops::conv::Conv2d as Options;
use crate::ops::matmul::sums;
use crate::ops::pool::Window;
use crate::tape::through;
use crate::tensor::Tensor;

/// Sizes of a residual network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResnetConfig {
    /// Side in pixels of the square input that pictures are made into; the network itself takes any size.
    pub image_size: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Kind of the blocks.
    pub block: BlockKind,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Channels of the stem and of the first stage's narrow convolutions; doubled by each further stage.
    pub base: usize,
    /// Groups of a bottleneck's 3 x 3 convolution (ResNeXt).
    pub groups: usize,
    /// Channels of each group for every 64 of the stage (wide ResNets, ResNeXt).
    pub width_per_group: usize,
    /// For each stage but the first, whether its stride is replaced by a dilation (torchvision's replace_stride_with_dilation).
    /// Empty: none.
    pub dilate: Vec<bool>,
    /// Outputs of the classifying layer `fc`; 0: there is none.
    pub classes: usize,
}

/// The two kinds of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two 3 x 3 convolutions (ResNet-18, 34).
    Basic,
    /// 1 x 1, 3 x 3, and 1 x 1 with four times the channels (ResNet-50 and deeper).
    Bottleneck,
}

impl Default for ResnetConfig {
    /// ResNet-50.
    fn default() -> Self {
        Self {
            image_size: 224,
            channels: 3,
            block: BlockKind::Bottleneck,
            depths: vec![3, 4, 6, 3],
            base: 64,
            groups: 1,
            width_per_group: 64,
            dilate: Vec::new(),
            classes: 0,
        }
    }
}

const MOST_STAGES: usize = 8;

/// Of a stage; ResNet-152 has 36.
const MOST_BLOCKS: usize = 1000;

impl BlockKind {
    /// Convolutions of a block, the one beside it not counted: what the networks are named after.
    pub fn convolutions(self) -> usize {
        match self {
            Self::Basic => 2,
            Self::Bottleneck => 3,
        }
    }

    fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

impl ResnetConfig {
    /// The sizes of a network from those of its tensors, of which `dims` knows the names; nothing if that is not a residual network.
    /// A dilation does not show: strides are torchvision's.
    pub fn infer(dims: impl Fn(&str) -> Option<Dims>) -> Option<Self> {
        let [base, channels, 7, 7] = dims("conv1.weight")?[..] else { return None };
        let depth = |stage: usize| {
            (0..MOST_BLOCKS).take_while(|block| dims(&format!("layer{stage}.{block}.conv1.weight")).is_some()).count()
        };
        let depths: Vec<usize> = (1..=MOST_STAGES).map(depth).take_while(|&depth| depth > 0).collect();
        let block = match dims("layer1.0.conv3.weight") {
            Some(_) => BlockKind::Bottleneck,
            None => BlockKind::Basic,
        };
        let (mut groups, mut width_per_group) = (1, 64);
        if block == BlockKind::Bottleneck && base > 0 {
            let [width, input, ..] = dims("layer1.0.conv2.weight")?[..] else { return None };
            groups = width.checked_div(input)?;
            width_per_group = width.checked_mul(64)? / groups.max(1) / base;
        }
        let classes = dims("fc.weight").map_or(0, |fc| fc.first().copied().unwrap_or(0));
        let found = Self { channels, block, depths, base, groups, width_per_group, classes, ..Self::default() };
        found.check().is_ok().then_some(found)
    }

    /// # Errors
    /// Naming what is out of range.
    pub fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::usage(format!("resnet: {why}")));
        let stages = self.depths.len();
        if !(1..=MOST_STAGES).contains(&stages) || self.depths.iter().any(|d| !(1..=MOST_BLOCKS).contains(d)) {
            return wrong(format!(
                "depths are 1 to {MOST_STAGES} numbers of blocks, each in 1..={MOST_BLOCKS}, not {:?}",
                self.depths
            ));
        }
        if self.image_size == 0 || self.channels == 0 || self.base == 0 {
            return wrong(format!("image_size, channels and base must not be 0: {self:?}"));
        }
        let sizes = [("image_size", self.image_size), ("channels", self.channels), ("base", self.base)];
        check_most("resnet", sizes.into_iter().chain([("classes", self.classes)]), MAX_SIZE)?;
        if !self.dilate.is_empty() && self.dilate.len() != stages - 1 {
            return wrong(format!(
                "dilate has {} values for the {} stages after the first",
                self.dilate.len(),
                stages - 1
            ));
        }
        let plain = self.groups == 1 && self.width_per_group == 64 && !self.dilate.contains(&true);
        if self.block == BlockKind::Basic && !plain {
            return wrong(
                "basic blocks have no groups, no other widths and no dilation; take block = \"bottleneck\"".into(),
            );
        }
        let wide = self.groups.saturating_mul(self.width_per_group);
        check_most("resnet", [("groups x width_per_group", wide)], MAX_SIZE)?;
        if wide == 0 || (0..stages).any(|stage| self.narrow(stage) == 0) {
            return wrong(format!("groups and width_per_group leave no channels: {self:?}"));
        }
        // Channels double by stages: those of the last are the most.
        let widest = self.wide(stages - 1).max(self.narrow(stages - 1));
        check_most("resnet", [("the width of the last stage, of base, groups and width_per_group,", widest)], MAX_SIZE)
    }

    /// Channels of a stage's output.
    fn wide(&self, stage: usize) -> usize {
        (self.base << stage) * self.block.expansion()
    }

    /// Channels inside a stage's blocks.
    fn narrow(&self, stage: usize) -> usize {
        (self.base << stage) * self.width_per_group / 64 * self.groups
    }

    fn dilated(&self, stage: usize) -> bool {
        stage > 0 && self.dilate.get(stage - 1) == Some(&true)
    }

    /// Channels of the last map.
    pub fn width(&self) -> usize {
        self.wide(self.depths.len().max(1) - 1)
    }

    /// Numbers of the largest map for each pixel of an image.
    pub fn numbers_per_pixel(&self) -> f64 {
        (self.base as f64 / 4.0).max(self.wide(0) as f64 / 16.0)
    }

    /// Rows and columns of the last map for pixels of this size.
    pub fn grid(&self, size: [usize; 2]) -> [usize; 2] {
        let halvings = 2 + (1..self.depths.len()).filter(|&stage| !self.dilated(stage)).count();
        size.map(|side| (0..halvings).fold(side, |side, _| side.div_ceil(2)))
    }
}

/// Convolutions with a norm each, ReLU between them, added to the input or to its projection.
#[derive(Clone)]
struct Block {
    branch: Vec<ConvNorm>,
    shortcut: Option<ConvNorm>,
}

const BRANCH: [[&str; 2]; 3] = [["conv1", "bn1"], ["conv2", "bn2"], ["conv3", "bn3"]];
const SHORTCUT: [&str; 2] = ["downsample.0", "downsample.1"];

/// Where a block stands: channels outside and inside of it, stride and dilation.
struct Place {
    input: usize,
    narrow: usize,
    wide: usize,
    stride: usize,
    dilation: usize,
}

impl Block {
    fn new(params: &Params, c: &ResnetConfig, at: &Place) -> Result<Self> {
        let &Place { input, narrow, wide, stride, dilation } = at;
        // 3 x 3 with the padding that keeps the sides.
        let square = |stride: usize, groups: usize| Options {
            stride: [stride; 2],
            padding: [dilation; 2],
            dilation: [dilation; 2],
            groups,
        };
        let conv = |i: usize, channels, kernel, options| ConvNorm::new(params, BRANCH[i], channels, kernel, options);
        let branch = match c.block {
            BlockKind::Basic => {
                vec![conv(0, [input, wide], 3, square(stride, 1))?, conv(1, [wide, wide], 3, square(1, 1))?]
            }
            BlockKind::Bottleneck => vec![
                conv(0, [input, narrow], 1, Options::default())?,
                conv(1, [narrow, narrow], 3, square(stride, c.groups))?,
                conv(2, [narrow, wide], 1, Options::default())?,
            ],
        };
        let projected = stride != 1 || input != wide;
        let shortcut = || ConvNorm::new(params, SHORTCUT, [input, wide], 1, Options::new(stride, 0));
        Ok(Self { branch, shortcut: projected.then(shortcut).transpose()? })
    }

    fn forward(&self, x: &Tensor, statistics: &mut Statistics) -> Tensor {
        let (last, inner) = self.branch.split_last().expect("a block has convolutions");
        let y = inner.iter().fold(x.clone(), |y, layer| {
            let y = layer.forward_relu(&y, None, statistics);
            layer.kept(y, statistics)
        });
        let shortcut = self.shortcut.as_ref().map_or(x.clone(), |shortcut| {
            let projected = shortcut.forward(x, statistics);
            shortcut.kept(projected, statistics)
        });
        let y = last.forward_relu(&y, Some(&shortcut), statistics);
        last.kept(y, statistics)
    }
}

impl Module for Block {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.branch.iter_mut().chain(&mut self.shortcut).for_each(|layer| layer.visit(at, f));
    }

    // As the forward pass comes to them: the last norm's ReLU needs the shortcut.
    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        let (last, inner) = self.branch.split_last_mut().expect("a block has convolutions");
        inner.iter_mut().chain(&mut self.shortcut).for_each(|layer| layer.visit_buffers(at, f));
        last.visit_buffers(at, f);
    }
}

/// A part of the network; of a batch's statistics, those of the first time are noted where it is computed again.
fn part<P: Clone + Send + Sync + 'static>(
    part: &P,
    x: &Tensor,
    statistics: &mut Statistics,
    forward: fn(&P, &Tensor, &mut Statistics) -> Tensor,
) -> Tensor {
    let Statistics::Batch(noted) = statistics else { return forward(part, x, statistics) };
    let found = Arc::new(Mutex::new(Noted::default()));
    let place = found.clone();
    let y = through(part, x, move |part, x| {
        let mut own = Statistics::batch();
        let y = forward(part, x, &mut own);
        *place.lock().unwrap_or_else(|e| e.into_inner()) = own.into_noted();
        y
    });
    noted.append(std::mem::take(&mut *found.lock().unwrap_or_else(|e| e.into_inner())));
    y
}

/// A residual network.
pub struct Resnet {
    stem: ConvNorm,
    stages: Vec<Vec<Block>>,
    fc: Option<Linear>,
}

impl Resnet {
    /// Asks for `conv1.weight`, `bn1.*`, `layerN.M.*` and, where the config has classes, `fc.*`.
    ///
    /// # Errors
    /// If the sizes do not fit each other, or a parameter is missing or has other dims.
    pub fn new(params: &Params, config: &ResnetConfig) -> Result<Self> {
        config.check()?;
        let stem = ConvNorm::new(params, BRANCH[0], [config.channels, config.base], 7, Options::new(2, 3))?;
        let (mut input, mut dilation, mut stages) = (config.base, 1, Vec::new());
        for (stage, &depth) in config.depths.iter().enumerate() {
            let (narrow, wide) = (config.narrow(stage), config.wide(stage));
            // A dilated stage's first block keeps the dilation of the stage before.
            let (mut stride, mut first) = (if stage == 0 { 1 } else { 2 }, dilation);
            if config.dilated(stage) {
                (stride, dilation) = (1, 2 * dilation);
            }
            let mut blocks = Vec::new();
            for i in 0..depth {
                let place = Place { input, narrow, wide, stride, dilation: first };
                blocks.push(Block::new(&params.at(&format!("layer{}.{i}", stage + 1)), config, &place)?);
                (input, stride, first) = (wide, 1, dilation);
            }
            stages.push(blocks);
        }
        let fc = || Linear::new(params, "fc", [input, config.classes], true, (input as f64).powf(-0.5));
        Ok(Self { stem, stages, fc: (config.classes > 0).then(fc).transpose()? })
    }

    /// Pixels [n, c, h, w] to the last map [n, rows, columns, width].
    pub fn forward(&self, pixels: &Tensor, statistics: &mut Statistics) -> Tensor {
        let x = part(&self.stem, &pixels.permute(&[0, 2, 3, 1]), statistics, |stem, x, statistics| {
            let x = stem.forward_relu(x, None, statistics);
            stem.kept(x, statistics).max_pool2d(Window::square(3, 2, 1))
        });
        let map = self.stages.iter().flatten().fold(x, |x, block| part(block, &x, statistics, Block::forward));
        map.to_dtype(sums(map.dtype()))
    }

    /// The last map [n, rows, columns, width] to logits [n, classes]; nothing where there are no classes.
    pub fn classify(&self, map: &Tensor) -> Option<Tensor> {
        Some(self.fc.as_ref()?.forward(&map.mean(&[1, 2], false), None))
    }

    /// The stem's place in names: it has no parent of its own.
    fn each(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        f(at, &mut self.stem);
        for (stage, blocks) in self.stages.iter_mut().enumerate() {
            for (i, block) in blocks.iter_mut().enumerate() {
                f(&join(at, &format!("layer{}.{i}", stage + 1)), block);
            }
        }
        if let Some(fc) = &mut self.fc {
            f(&join(at, "fc"), fc);
        }
    }
}

impl Module for Resnet {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.each(at, &mut |name, part| part.visit(name, f));
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.each(at, &mut |name, part| part.visit_buffers(name, f));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::DType;
    use crate::gradcheck::gradcheck;
    use crate::nn::Source;
    use crate::rng::Rng;

    fn small(block: BlockKind) -> ResnetConfig {
        ResnetConfig { channels: 2, block, depths: vec![1, 2], base: 4, ..ResnetConfig::default() }
    }

    fn resnet(config: &ResnetConfig) -> Resnet {
        Resnet::new(&Source::drawn(3, DType::F64).params(), config).unwrap()
    }

    fn tensors(resnet: &mut Resnet) -> BTreeMap<String, Dims> {
        let mut found = BTreeMap::new();
        resnet.visit_all("", &mut |name, t| assert!(found.insert(name.to_owned(), *t.dims()).is_none()));
        found
    }

    #[test]
    fn the_sizes_follow_from_the_tensors_and_are_torchvisions() {
        let basic = ResnetConfig { block: BlockKind::Basic, depths: vec![2; 4], base: 8, ..ResnetConfig::default() };
        let next = ResnetConfig { groups: 32, width_per_group: 4, base: 16, classes: 7, ..ResnetConfig::default() };
        let next = ResnetConfig { depths: vec![1, 2], width_per_group: 8, ..next };
        for (config, trained) in [
            // As many as torchvision's resnet18 has with an eighth of its channels.
            (ResnetConfig { classes: 1000, ..basic }, Some(241_712)),
            (ResnetConfig { width_per_group: 128, ..small(BlockKind::Bottleneck) }, None),
            (next, None),
        ] {
            let source = Source::drawn(1, DType::F32);
            let mut resnet = Resnet::new(&source.params(), &config).unwrap();
            let found = tensors(&mut resnet);
            assert_eq!(ResnetConfig::infer(|name| found.get(name).copied()).as_ref(), Some(&config));
            let mut count = 0;
            resnet.visit("", &mut |_, t| count += t.numel());
            assert!(trained.is_none_or(|trained| trained == count), "{count} parameters");
        }
        let found = tensors(&mut resnet(&small(BlockKind::Bottleneck)));
        assert_eq!(found["layer2.0.conv2.weight"][..], [8, 8, 3, 3]);
        assert_eq!(found["layer2.0.downsample.0.weight"][..], [32, 16, 1, 1]);
        assert_eq!(found["layer2.1.bn3.running_var"][..], [32]);
        assert!(!found.contains_key("layer2.1.downsample.0.weight") && !found.contains_key("fc.weight"));
        assert_eq!(ResnetConfig::infer(|_| None), None);
        assert_eq!(ResnetConfig::infer(|_| Some(Dims::new(&[0, 0, 7, 7]))), None);
    }

    #[test]
    fn both_kinds_of_blocks_are_differentiable_by_either_statistics() {
        let dilated = ResnetConfig { dilate: vec![true], ..small(BlockKind::Bottleneck) };
        for (config, grid) in
            [(small(BlockKind::Basic), [3, 2]), (small(BlockKind::Bottleneck), [3, 2]), (dilated, [5, 3])]
        {
            let mut resnet = resnet(&config);
            let mut rng = Rng::new(5, 0);
            // Norms that leave what they see alone hide what is wrong with them.
            resnet.visit_all("", &mut |name, t| {
                if t.rank() == 1 {
                    let drawn = Tensor::randn(*t.dims(), DType::F64, &mut rng);
                    *t = if name.ends_with("var") { drawn.square().affine(1.0, 0.5) } else { drawn.affine(0.3, 0.5) };
                }
            });
            resnet.visit("", &mut |_, t| *t = t.trainable());
            let x = Tensor::randn([2, 2, 18, 11], DType::F64, &mut rng);
            let by_batch = |x: &Tensor| resnet.forward(x, &mut Statistics::batch());
            let running = |x: &Tensor| resnet.forward(x, &mut Statistics::Running);
            assert_eq!(running(&x).dims()[..], [2, grid[0], grid[1], config.width()]);
            assert_eq!(config.grid([18, 11]), grid);
            gradcheck(|x| running(&x[0]), std::slice::from_ref(&x), 1e-6, &mut Rng::new(1, 1)).unwrap();
            gradcheck(|x| by_batch(&x[0]), &[x], 1e-6, &mut Rng::new(1, 2)).unwrap();
        }
    }

    #[test]
    fn one_pass_of_training_moves_every_statistic_a_tenth_of_the_way() {
        let mut resnet = resnet(&small(BlockKind::Bottleneck));
        resnet.visit("", &mut |_, t| *t = t.trainable());
        let x = Tensor::randn([3, 2, 16, 16], DType::F64, &mut Rng::new(5, 0));
        let stem = x.permute(&[0, 2, 3, 1]);
        let mut statistics = Statistics::batch();
        resnet.forward(&x, &mut statistics);
        statistics.into_noted().apply(&mut resnet);
        let mut still = Vec::new();
        resnet.visit_buffers("", &mut |name, t| {
            let start = if name.ends_with("mean") { 0.0 } else { 1.0 };
            if t.to_f64_vec().contains(&start) {
                still.push(name.to_owned());
            }
        });
        assert!(still.is_empty(), "{still:?}");
        // Against the definition, for the first norm.
        let mut first = BTreeMap::new();
        resnet.visit_all("", &mut |name, t| {
            first.insert(name.to_owned(), t.detach());
        });
        let y = stem.conv2d(&first["conv1.weight"], None, Options::new(2, 3));
        let mean = y.mean(&[0, 1, 2], true);
        let n = (y.numel() / 4) as f64;
        let var = y.sub(&mean).square().sum(&[0, 1, 2], false) * (1.0 / (n - 1.0));
        let mean = mean.reshape([4]);
        crate::gradcheck::assert_close("mean", &first["bn1.running_mean"], &(mean * 0.1), 1e-12);
        crate::gradcheck::assert_close("var", &first["bn1.running_var"], &var.affine(0.1, 0.9), 1e-12);
    }

    #[test]
    fn sizes_that_contradict_each_other_are_refused() {
        let wrong = |change: &dyn Fn(&mut ResnetConfig)| {
            let mut config = small(BlockKind::Basic);
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(wrong(&|c| c.depths.clear()).contains("depths"));
        assert!(wrong(&|c| c.dilate = vec![true]).contains("bottleneck"));
        assert!(wrong(&|c| c.dilate = vec![false; 3]).contains("dilate has 3"));
        assert!(wrong(&|c| c.base = 0).contains("base"));
    }
}
