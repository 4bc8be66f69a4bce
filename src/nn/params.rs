//! Where a module's parameters come from, and how they are visited.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use kernels_cpu::hash::fnv;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::formats::{MAX_TENSORS, Weights};
use crate::layout::Dims;
use crate::rng::Rng;
use crate::tensor::Tensor;

/// What follows the name of a matrix of int8 in the name of its scales.
pub const SCALE: &str = ".scale";

/// Something with parameters.
pub trait Module {
    /// Calls `f` with the full name and the tensor of every parameter below `at`, always in the same order.
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor));

    /// As [`Module::visit`] for buffers: tensors that are kept in files beside the parameters but never trained, such as
    /// batch norm's running statistics. A module whose parts have some passes the call on; most have none.
    fn visit_buffers(&mut self, _at: &str, _f: &mut dyn FnMut(&str, &mut Tensor)) {}

    /// Parameters, then buffers: all that a file of this module holds.
    fn visit_all(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.visit(at, f);
        self.visit_buffers(at, f);
    }
}

/// How a parameter starts where no file gives it.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// All elements equal.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
}

/// A source of parameters by name: one constructor of a model serves drawing them and loading them.
pub struct Params<'a> {
    source: &'a Source<'a>,
    prefix: String,
}

/// What parameters are taken from.
pub struct Source<'a> {
    kind: Kind<'a>,
    used: RefCell<BTreeSet<String>>,
    asked: RefCell<BTreeMap<String, Dims>>,
}

enum Kind<'a> {
    Drawn { seed: u64, dtype: DType },
    File(&'a Weights),
    Tensors(&'a BTreeMap<String, Tensor>),
    Shapes,
}

impl<'a> Source<'a> {
    /// Parameters drawn from a seed; each from its own stream, named by the parameter, so that their order does not matter.
    pub fn drawn(seed: u64, dtype: DType) -> Self {
        Self { kind: Kind::Drawn { seed, dtype }, used: RefCell::default(), asked: RefCell::default() }
    }

    /// Parameters of a file, as views of it.
    pub fn file(weights: &'a Weights) -> Self {
        Self { kind: Kind::File(weights), used: RefCell::default(), asked: RefCell::default() }
    }

    /// Given parameters, by name.
    pub fn tensors(tensors: &'a BTreeMap<String, Tensor>) -> Self {
        Self { kind: Kind::Tensors(tensors), used: RefCell::default(), asked: RefCell::default() }
    }

    /// Parameters without bytes of their own, to learn what a model asks for: see [`Source::asked`]. More than [`MAX_TENSORS`] are an
    /// error.
    pub fn shapes() -> Self {
        Self { kind: Kind::Shapes, used: RefCell::default(), asked: RefCell::default() }
    }

    /// The dims of every parameter that was asked of [`Source::shapes`], by name.
    pub fn asked(&self) -> BTreeMap<String, Dims> {
        self.asked.borrow().clone()
    }

    /// The root of the names.
    pub fn params(&'a self) -> Params<'a> {
        Params { source: self, prefix: String::new() }
    }

    /// Every tensor of a file must have been asked for.
    ///
    /// # Errors
    /// Listing the ones that were not.
    pub fn all_used(&self) -> Result<()> {
        let Kind::File(weights) = &self.kind else { return Ok(()) };
        let used = self.used.borrow();
        let left: Vec<&str> = weights.iter().map(|(name, _)| name).filter(|name| !used.contains(*name)).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::new(format!("{} tensors are not part of this model: {}", left.len(), left.join(", ")))
            .at(weights.path()))
    }
}

impl Params<'_> {
    /// Names below `name`.
    pub fn at(&self, name: &str) -> Self {
        Self { source: self.source, prefix: self.full(name) }
    }

    fn full(&self, name: &str) -> String {
        join(&self.prefix, name)
    }

    /// The parameter `name`.
    ///
    /// # Errors
    /// If a file does not have it, or with other dims.
    pub fn get(&self, name: &str, dims: &[usize], init: Init) -> Result<Tensor> {
        let name = self.full(name);
        match &self.source.kind {
            Kind::Drawn { seed, dtype } => Ok(match init {
                Init::Constant(value) => Tensor::full(dims, value, *dtype),
                Init::Normal(std) => Tensor::randn(dims, *dtype, &mut Rng::new(*seed, fnv(name.as_bytes()))) * std,
            }),
            Kind::Shapes => {
                // A config that says a billion layers must not be followed to its end.
                if self.source.asked.borrow().len() >= MAX_TENSORS {
                    return Err(Error::new(format!(
                        "the config describes more than {MAX_TENSORS} tensors, from {name} on; no model has so many layers"
                    )));
                }
                self.source.asked.borrow_mut().insert(name, Dims::new(dims));
                let ones: Vec<usize> = dims.iter().map(|_| 1).collect();
                Ok(Tensor::zeros(Dims::new(&ones), DType::F32).broadcast_to(dims))
            }
            Kind::Tensors(tensors) => match tensors.get(&name) {
                Some(tensor) if tensor.dims()[..] == *dims => Ok(tensor.clone()),
                Some(tensor) => {
                    let found = tensor.dims();
                    Err(Error::new(format!("tensor {name} has dims {found:?}, this model needs {dims:?}")))
                }
                None => Err(Error::new(format!("tensor {name} is missing"))),
            },
            Kind::File(weights) => {
                let tensor = weights
                    .get(&name)
                    .ok_or_else(|| Error::new(format!("tensor {name} is missing")).at(weights.path()))?;
                if *tensor.dims() != Dims::new(dims) {
                    return Err(Error::new(format!(
                        "tensor {name} has dims {:?}, this model needs {dims:?}",
                        tensor.dims()
                    ))
                    .at(weights.path()));
                }
                self.source.used.borrow_mut().insert(name);
                Ok(tensor.clone())
            }
        }
    }

    /// The scales of the matrix `name`, where it is given in int8.
    pub fn scale(&self, name: &str) -> Option<Tensor> {
        let Kind::Tensors(tensors) = &self.source.kind else { return None };
        let name = self.full(name);
        let levels = tensors.get(&name).is_some_and(|tensor| tensor.dtype() == DType::I8);
        tensors.get(&format!("{name}{SCALE}")).filter(|_| levels).cloned()
    }
}

/// The name of a part below `at`, which is empty at the root.
pub(crate) fn join(at: &str, part: &str) -> String {
    if at.is_empty() { part.to_owned() } else { format!("{at}.{part}") }
}
