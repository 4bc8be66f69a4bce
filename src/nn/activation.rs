//! The activation inside a transformer's perceptrons.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::Unary;

/// Which activation. In a file: its name, or, as older files have it under the key `quick_gelu`, true or false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU in the erf form.
    #[default]
    Gelu,
    /// CLIP's x sigmoid(1.702 x).
    QuickGelu,
    /// GELU's approximation by tanh.
    GeluTanh,
    /// max(x, 0)
    Relu,
}

impl Activation {
    /// The activation that a config.json of Hugging Face or a `timm` name means.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "quick_gelu" => Self::QuickGelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// The function.
    pub fn unary(self) -> Unary {
        match self {
            Self::Gelu => Unary::Gelu,
            Self::QuickGelu => Unary::QuickGelu,
            Self::GeluTanh => Unary::GeluTanh,
            Self::Relu => Unary::Relu,
        }
    }
}

impl<'de> Deserialize<'de> for Activation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Name(String),
            Quick(bool),
        }
        let known = || D::Error::custom("activation: gelu, quick_gelu, gelu_tanh or relu");
        match Written::deserialize(deserializer).map_err(|_| known())? {
            Written::Quick(quick) => Ok(if quick { Self::QuickGelu } else { Self::Gelu }),
            Written::Name(name) => Self::of(&name).ok_or_else(known),
        }
    }
}
