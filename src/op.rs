//! The one concept behind every computation: an op says its shape rule, how it runs, what it keeps, and its derivative.

use crate::device::{self, Gpu};
use crate::dtype::DType;
use crate::layout::Dims;
use crate::plan::{Packs, Prepared, Role, trace};
use crate::profile;
use crate::tape::Node;
use crate::tensor::Tensor;

pub use crate::gradcheck::{Case, Gen};

/// Dims and element type: what a shape rule maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Sizes.
    pub dims: Dims,
    /// Element type.
    pub dtype: DType,
}

impl Meta {
    /// Dims and element type together.
    pub fn new(dims: impl Into<Dims>, dtype: DType) -> Self {
        Self { dims: dims.into(), dtype }
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.dims.numel() * self.dtype.size()
    }
}

/// An operation on tensors. Eager execution, the tape and the gradient checks all use this one object.
pub trait Op: Send + Sync + 'static {
    /// The field's name of the op, as in `layer_norm`.
    fn name(&self) -> &'static str;

    /// Dims and type of the output.
    ///
    /// # Panics
    /// On inputs that do not fit, telling their dims.
    fn shape(&self, x: &[Meta]) -> Meta;

    /// Computes on the CPU. `x` are the inputs without graph; `out` is what [`Op::shape`] said.
    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output;

    /// Computes on a device, where the op has kernels for such inputs, one of which lives there. `None`: it runs on the CPU, and is
    /// counted.
    fn gpu(&self, _on: &Gpu, _x: &[&Tensor], _out: Meta) -> Option<Output> {
        None
    }

    /// How a plan may join this op to the one that makes its input.
    fn role(&self) -> Role {
        Role::Other
    }

    /// The op with its constant inputs (those that are there) worked into a form that is quicker to use, where there is one.
    fn prepare(&self, _x: &[Meta], _constants: &[Option<&Tensor>], _packs: &mut Packs) -> Option<Box<dyn Prepared>> {
        None
    }

    /// Operations of its matrix products, two for a multiplication and an addition: what a profile divides by.
    fn flops(&self, _x: &[Meta], _out: Meta) -> u64 {
        0
    }

    /// What [`Op::vjp`] will ask for; `needs[i]` tells whether input `i` wants a gradient.
    fn saves(&self, needs: &[bool]) -> Saves;

    /// Vector-Jacobian product: the gradient of each input, given `dy`, the gradient of the output. `None` where the
    /// input has none or does not need one. A gradient may have broadcast dims: the tape sums it to its input's dims.
    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>>;

    /// As [`Op::vjp`], for a `dy` that lives on a device, where the op has kernels for it. `None`: by `vjp`, which runs there too as far
    /// as it is made of ops; what it makes on the CPU is counted.
    fn gpu_vjp(&self, _on: &Gpu, _saved: &Saved, _dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        None
    }

    /// Draws an instance with inputs (random dims with edge sizes, strides, values) for gradient checks, and says what to expect.
    fn cases(g: &mut Gen) -> Case
    where
        Self: Sized;
}

/// What a CPU arm returns: the value, and by-products that backward or the caller can use (statistics, indices).
pub struct Output {
    /// The differentiable output.
    pub value: Tensor,
    /// By-products, without derivative. Kept for backward.
    pub aux: Vec<Tensor>,
}

impl From<Tensor> for Output {
    fn from(value: Tensor) -> Self {
        Self { value, aux: Vec::new() }
    }
}

/// Which tensors an op keeps for backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saves {
    inputs: u32,
    output: bool,
}

impl Saves {
    /// Only dims and by-products.
    pub const NOTHING: Self = Self { inputs: 0, output: false };
    /// The output.
    pub const OUTPUT: Self = Self { inputs: 0, output: true };
    /// Every input.
    pub const INPUTS: Self = Self { inputs: u32::MAX, output: false };

    /// Input `i`, if `wanted`.
    pub const fn input_if(i: usize, wanted: bool) -> Self {
        Self { inputs: (wanted as u32) << i, output: false }
    }

    /// Input `i`.
    pub const fn input(i: usize) -> Self {
        Self::input_if(i, true)
    }

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self { inputs: self.inputs | other.inputs, output: self.output | other.output }
    }
}

/// What was kept for backward.
pub struct Saved {
    op: &'static str,
    metas: Vec<Meta>,
    needs: Vec<bool>,
    inputs: Vec<Option<Tensor>>,
    output: Option<Tensor>,
    aux: Vec<Tensor>,
}

impl Saved {
    fn new(op: &dyn Op, x: &[&Tensor], output: &Output) -> Self {
        let needs: Vec<bool> = x.iter().map(|t| t.is_tracked()).collect();
        let saves = op.saves(&needs);
        Self {
            op: op.name(),
            metas: x.iter().map(|t| t.meta()).collect(),
            inputs: x.iter().enumerate().map(|(i, t)| (saves.inputs >> i & 1 == 1).then(|| t.detach())).collect(),
            output: saves.output.then(|| output.value.detach()),
            aux: output.aux.iter().map(Tensor::detach).collect(),
            needs,
        }
    }

    /// The inputs that were kept.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &Tensor> {
        self.inputs.iter().flatten()
    }

    /// Input `i`, which [`Op::saves`] must have named.
    pub fn input(&self, i: usize) -> &Tensor {
        self.inputs[i]
            .as_ref()
            .unwrap_or_else(|| panic!("{}: saves() does not name input {i}, vjp() asks for it", self.op))
    }

    /// The output, which [`Op::saves`] must have named.
    pub fn output(&self) -> &Tensor {
        self.output
            .as_ref()
            .unwrap_or_else(|| panic!("{}: saves() does not name the output, vjp() asks for it", self.op))
    }

    /// By-product `i`.
    pub fn aux(&self, i: usize) -> &Tensor {
        &self.aux[i]
    }

    /// Dims and type of input `i`.
    pub fn meta(&self, i: usize) -> Meta {
        self.metas[i]
    }

    /// Dims of input `i`.
    pub fn dims(&self, i: usize) -> Dims {
        self.metas[i].dims
    }

    /// Number of inputs.
    pub fn count(&self) -> usize {
        self.metas.len()
    }

    /// Bytes that a derivative reads and writes at least.
    pub(crate) fn bytes(&self) -> u64 {
        let kept = self.inputs.iter().flatten().chain(&self.output).chain(&self.aux).map(|t| t.meta());
        let made = (0..self.count()).filter(|&i| self.needs(i)).map(|i| self.meta(i));
        profile::bytes(kept.chain(made))
    }

    /// Operations of the matrix products in a derivative: as many for each input's as forward.
    pub(crate) fn flops(&self, op: &dyn Op, out: Meta) -> u64 {
        let factors = (0..self.count()).filter(|&i| self.needs(i) && self.dims(i).len() > 1).count();
        op.flops(&self.metas, out) * factors as u64
    }

    /// Whether input `i` wants a gradient.
    pub fn needs(&self, i: usize) -> bool {
        self.needs[i]
    }

    /// `gradient()` for input `i`, if it wants one.
    pub fn want(&self, i: usize, gradient: impl FnOnce() -> Tensor) -> Option<Tensor> {
        self.needs[i].then(gradient)
    }
}

/// Runs `op` on `x` and records it where a trainable tensor reaches an input.
#[track_caller]
pub fn apply(op: impl Op, x: &[&Tensor]) -> Tensor {
    apply_aux(op, x).0
}

/// As [`apply`], and returns the by-products too.
#[track_caller]
pub fn apply_aux(op: impl Op, x: &[&Tensor]) -> (Tensor, Vec<Tensor>) {
    applied(Box::new(op), x)
}

// Once for all ops.
#[track_caller]
fn applied(op: Box<dyn Op>, x: &[&Tensor]) -> (Tensor, Vec<Tensor>) {
    let metas: Vec<Meta> = x.iter().map(|t| t.meta()).collect();
    let out = op.shape(&metas);
    let output = profile::timed(
        || trace::inside(x, || device::run(&*op, x, out)),
        |_| (op.name().to_owned(), op.flops(&metas, out), profile::bytes(metas.iter().copied().chain([out]))),
    );
    debug_assert_eq!(output.value.meta(), out, "{}: the arm does not keep its shape rule", op.name());
    if trace::is_listening() {
        trace::record(op, x, out, &output);
        return (output.value, output.aux);
    }
    crate::finite::saw(op.name(), false, &[&output.value], x.iter().copied());
    if !x.iter().any(|t| t.is_tracked()) {
        return (output.value, output.aux);
    }
    let saved = Saved::new(&*op, x, &output);
    let inputs = x.iter().map(|t| t.node().cloned()).collect();
    (output.value.with_node(Some(Node::op(op, inputs, saved))), output.aux)
}

/// What ops without a derivative answer when backward reaches them.
#[track_caller]
pub fn no_derivative(op: &str) -> ! {
    panic!("{op} has no derivative: detach() its input, or do not send a gradient through it")
}
