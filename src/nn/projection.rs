//! From a tower's width into the joint space.

use serde::{Deserialize, Serialize};

use super::{LayerNorm, Linear, Module, Params, Unary};
use crate::error::Result;
use crate::tensor::Tensor;

/// Which projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionKind {
    /// CLIP's matrix without bias.
    #[default]
    Linear,
    /// CXR-BERT's two layers: see [`ProjectionHead`].
    Head,
    /// open_clip's two layers with GELU between: see [`ProjectionMlp`].
    Mlp {
        /// Width between the layers.
        hidden: usize,
        /// Whether the layers have biases.
        #[serde(default)]
        bias: bool,
    },
}

/// Linear, GELU, layer norm, linear: `cls_projection_head` of CXR-BERT (Boecking et al. 2022) and of the TIER paper.
pub struct ProjectionHead {
    dense_to_hidden: Linear,
    norm: LayerNorm,
    dense_to_output: Linear,
}

impl ProjectionHead {
    /// Asks for `dense_to_hidden.*`, `LayerNorm.*` and `dense_to_output.*` below `name`.
    pub fn new(params: &Params, name: &str, [width, joint]: [usize; 2]) -> Result<Self> {
        let p = params.at(name);
        Ok(Self {
            dense_to_hidden: Linear::new(&p, "dense_to_hidden", [width, joint], true, (width as f64).powf(-0.5))?,
            norm: LayerNorm::new(&p, "LayerNorm", joint, 1e-12)?,
            dense_to_output: Linear::new(&p, "dense_to_output", [joint, joint], true, (joint as f64).powf(-0.5))?,
        })
    }

    /// x [.., width] to [.., joint].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.dense_to_hidden.forward(x, Some(Unary::Gelu));
        self.dense_to_output.forward(&self.norm.forward(&hidden), None)
    }
}

impl Module for ProjectionHead {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.dense_to_hidden.visit(&format!("{at}.dense_to_hidden"), f);
        self.norm.visit(&format!("{at}.LayerNorm"), f);
        self.dense_to_output.visit(&format!("{at}.dense_to_output"), f);
    }
}

/// Linear, GELU, linear: the text projection of open_clip's `CustomTextCLIP` with `hf_proj_type` mlp, such as BiomedCLIP's.
pub struct ProjectionMlp {
    fc1: Linear,
    fc2: Linear,
}

impl ProjectionMlp {
    /// Asks for `fc1.*` and `fc2.*` below `name`.
    pub fn new(params: &Params, name: &str, [width, joint]: [usize; 2], hidden: usize, bias: bool) -> Result<Self> {
        let p = params.at(name);
        Ok(Self {
            fc1: Linear::new(&p, "fc1", [width, hidden], bias, (width as f64).powf(-0.5))?,
            fc2: Linear::new(&p, "fc2", [hidden, joint], bias, (hidden as f64).powf(-0.5))?,
        })
    }

    /// x [.., width] to [.., joint].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.fc1.forward(x, Some(Unary::Gelu)), None)
    }
}

impl Module for ProjectionMlp {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.fc1.visit(&format!("{at}.fc1"), f);
        self.fc2.visit(&format!("{at}.fc2"), f);
    }
}

/// A projection of any kind.
#[expect(clippy::large_enum_variant, reason = "there is one in a model")]
pub enum Projection {
    /// A matrix.
    Linear(Linear),
    /// Two layers.
    Head(ProjectionHead),
    /// Two layers without a norm.
    Mlp(ProjectionMlp),
}

impl Projection {
    /// Asks for the parameters of `kind` below `name`.
    pub fn new(params: &Params, name: &str, [width, joint]: [usize; 2], kind: ProjectionKind) -> Result<Self> {
        Ok(match kind {
            ProjectionKind::Linear => {
                Self::Linear(Linear::new(params, name, [width, joint], false, (width as f64).powf(-0.5))?)
            }
            ProjectionKind::Head => Self::Head(ProjectionHead::new(params, name, [width, joint])?),
            ProjectionKind::Mlp { hidden, bias } => {
                Self::Mlp(ProjectionMlp::new(params, name, [width, joint], hidden, bias)?)
            }
        })
    }

    /// x [.., width] to [.., joint].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Linear(linear) => linear.forward(x, None),
            Self::Head(head) => head.forward(x),
            Self::Mlp(mlp) => mlp.forward(x),
        }
    }
}

impl Module for Projection {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Linear(linear) => linear.visit(at, f),
            Self::Head(head) => head.visit(at, f),
            Self::Mlp(mlp) => mlp.visit(at, f),
        }
    }
}
