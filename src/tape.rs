//! The graph that ops record, and backward through it.

use std::cell::Cell;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layout::Dims;
use crate::op::{Op, Saved};
use crate::products::Products;
use crate::profile;
use crate::scoped;
use crate::tensor::Tensor;

/// One recorded step. Ids grow with time, so an op's id is above those of its inputs.
pub(crate) struct Node {
    id: u64,
    kind: Kind,
}

type Edges = Vec<Option<Arc<Node>>>;
type Recompute = Box<dyn Fn(&[Tensor]) -> Tensor + Send + Sync>;

enum Kind {
    Leaf,
    Op {
        op: Box<dyn Op>,
        inputs: Edges,
        saved: Box<Saved>,
    },
    /// A part of the network that kept only its inputs: run again in backward.
    Checkpoint {
        run: Recompute,
        edges: Edges,
        inputs: Vec<Tensor>,
        /// The leaves beyond the inputs that it reaches.
        captured: Vec<u64>,
    },
}

impl Node {
    fn new(kind: Kind) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), kind })
    }

    pub(crate) fn leaf() -> Arc<Self> {
        Self::new(Kind::Leaf)
    }

    pub(crate) fn op(op: Box<dyn Op>, inputs: Edges, saved: Saved) -> Arc<Self> {
        Self::new(Kind::Op { op, inputs, saved: Box::new(saved) })
    }

    fn is_leaf(&self) -> bool {
        matches!(self.kind, Kind::Leaf)
    }

    fn edges(&self) -> &[Option<Arc<Node>>] {
        match &self.kind {
            Kind::Leaf => &[],
            Kind::Op { inputs, .. } => inputs,
            Kind::Checkpoint { edges, .. } => edges,
        }
    }

    fn take_edges(&mut self) -> Edges {
        match &mut self.kind {
            Kind::Leaf => Edges::new(),
            Kind::Op { inputs, .. } => std::mem::take(inputs),
            Kind::Checkpoint { edges, .. } => std::mem::take(edges),
        }
    }
}

impl Drop for Node {
    /// Iterative: a graph as deep as a long training loop must not overflow the stack.
    fn drop(&mut self) {
        let mut stack = self.take_edges();
        while let Some(edge) = stack.pop() {
            if let Some(mut node) = edge.and_then(Arc::into_inner) {
                stack.append(&mut node.take_edges());
            }
        }
    }
}

/// Gradients of trainable leaves.
#[derive(Default)]
pub struct Grads(BTreeMap<u64, Tensor>);

impl Grads {
    /// The gradient of `leaf`; `None` if the loss does not depend on it.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.node()?.id)
    }

    /// Takes the gradient of `leaf` out.
    pub fn take(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.node()?.id)
    }

    /// Adds the gradients of another backward pass, as accumulation over several batches needs.
    pub fn merge(&mut self, other: Grads) {
        for (id, gradient) in other.0 {
            accumulate(&mut self.0, id, gradient);
        }
    }

    /// Every gradient, for scaling and clipping.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.0.values_mut()
    }

    /// Every gradient.
    pub fn values(&self) -> impl Iterator<Item = &Tensor> {
        self.0.values()
    }
}

/// Adds in place where nobody else holds the sum so far.
fn accumulate(sums: &mut BTreeMap<u64, Tensor>, id: u64, gradient: Tensor) {
    match sums.remove(&id) {
        None => sums.insert(id, gradient),
        Some(sum) => sums.insert(id, sum.accumulated(&gradient)),
    };
}

struct ById(Arc<Node>);

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}
impl Eq for ById {}
impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ById {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl Tensor {
    /// Gradients of this scalar with respect to every trainable tensor that reaches it. Consumes the graph: saved
    /// tensors are freed as soon as they are used. A part of the graph that other tensors still hold lives on with them.
    ///
    /// # Panics
    /// If the tensor is not a single element, or no trainable tensor reaches it.
    #[track_caller]
    pub fn backward(self) -> Grads {
        let mut grads = Grads::default();
        self.backward_into(&mut |leaf, gradient| drop(grads.0.insert(leaf, gradient)));
        grads
    }

    /// As [`Tensor::backward`], which gives the gradient of each leaf, by its id, to `take` as soon as it is whole.
    #[track_caller]
    pub(crate) fn backward_into(self, take: &mut dyn FnMut(u64, Tensor)) {
        assert_eq!(self.numel(), 1, "backward() needs a scalar, got dims {:?}: use backward_with", self.dims());
        assert!(self.is_tracked(), "backward(): no trainable tensor reaches this one");
        let one = Tensor::full(*self.dims(), 1.0, self.dtype());
        backward_into(vec![(self, one)], take);
    }

    /// The id of a trainable leaf.
    pub(crate) fn leaf(&self) -> Option<u64> {
        self.node().filter(|node| node.is_leaf()).map(|node| node.id)
    }
}

/// Gradients of `sum over pairs of <output, gradient>`: backward from several tensors at once with given gradients.
/// Outputs that no trainable tensor reaches add nothing.
///
/// # Panics
/// If a gradient's dims differ from its output's.
#[track_caller]
pub fn backward_with(outputs: Vec<(Tensor, Tensor)>) -> Grads {
    let mut grads = Grads::default();
    backward_into(outputs, &mut |leaf, gradient| drop(grads.0.insert(leaf, gradient)));
    grads
}

/// As [`backward_with`], which gives the gradient of each leaf, by its id, to `take` as soon as it is whole. By then nothing of the graph that added
/// to it is held.
#[track_caller]
fn backward_into(outputs: Vec<(Tensor, Tensor)>, take: &mut dyn FnMut(u64, Tensor)) {
    let uses = uses(outputs.iter().filter_map(|(output, _)| output.node()));
    let mut pass = Pass { heap: BinaryHeap::new(), sums: BTreeMap::new(), uses, whole: Vec::new() };
    for (output, gradient) in outputs {
        assert_eq!(output.dims(), gradient.dims(), "backward_with: dims of an output and of its gradient");
        if let Some(node) = output.node() {
            pass.add(node, Some(gradient.placed(output.device())));
        }
    }
    pass.give(take);
    // Descending ids: when a node is reached, everything that uses it has been.
    while let Some(ById(node)) = pass.heap.pop() {
        while pass.heap.peek().is_some_and(|next| next.0.id == node.id) {
            pass.heap.pop();
        }
        let dy = pass.sums.remove(&node.id).expect("a node on the heap has a gradient");
        match &node.kind {
            Kind::Leaf => unreachable!("leaves are not put on the heap"),
            Kind::Op { op, inputs, saved } => {
                let gradients = profile::timed(
                    || crate::device::vjp(op.as_ref(), saved, &dy),
                    |_| {
                        let name = format!("{} backward", op.name());
                        (name, saved.flops(op.as_ref(), dy.meta()), saved.bytes() + profile::bytes([dy.meta()]))
                    },
                );
                let results: Vec<&Tensor> = gradients.iter().flatten().collect();
                crate::finite::saw(op.name(), true, &results, saved.inputs().chain([&dy]));
                drop(dy);
                assert_eq!(gradients.len(), inputs.len(), "{}: vjp gives one entry per input", op.name());
                for (i, (edge, gradient)) in inputs.iter().zip(gradients).enumerate() {
                    if let Some(input) = edge {
                        pass.add(input, gradient.map(|gradient| sum_to(gradient, saved.dims(i))));
                    }
                }
            }
            Kind::Checkpoint { run, edges, inputs, captured } => {
                // The inputs become leaves of a graph of their own; what it finds beyond them are captured parameters.
                let leaves: Vec<Tensor> =
                    inputs.iter().zip(edges).map(|(x, e)| if e.is_some() { x.as_leaf() } else { x.clone() }).collect();
                let mut inner = backward_with(vec![(run(&leaves), dy)]);
                for (leaf, edge) in leaves.iter().zip(edges) {
                    if let Some(input) = edge {
                        pass.add(input, inner.take(leaf));
                    }
                }
                captured.iter().for_each(|&leaf| pass.add_to_leaf(leaf, inner.0.remove(&leaf)));
            }
        }
        drop(node);
        pass.give(take);
    }
    // Of leaves that are used by parts of the graph which no gradient reached, too.
    let Pass { sums, .. } = pass;
    sums.into_iter().for_each(|(leaf, gradient)| take(leaf, gradient));
}

/// A backward pass under way.
struct Pass {
    /// Steps whose gradient is begun.
    heap: BinaryHeap<ById>,
    /// Gradients so far.
    sums: BTreeMap<u64, Tensor>,
    /// How often something is still to be added to a leaf's.
    uses: BTreeMap<u64, usize>,
    /// Leaves to whose nothing is.
    whole: Vec<u64>,
}

impl Pass {
    fn add(&mut self, node: &Arc<Node>, gradient: Option<Tensor>) {
        if node.is_leaf() {
            self.add_to_leaf(node.id, gradient);
        } else if let Some(gradient) = gradient {
            accumulate(&mut self.sums, node.id, gradient);
            self.heap.push(ById(node.clone()));
        }
    }

    fn add_to_leaf(&mut self, leaf: u64, gradient: Option<Tensor>) {
        if let Some(gradient) = gradient {
            accumulate(&mut self.sums, leaf, gradient);
        }
        let uses = self.uses.get_mut(&leaf).expect("every use of a leaf was counted");
        *uses -= 1;
        if *uses == 0 {
            self.whole.push(leaf);
        }
    }

    /// Lets go of what is whole.
    fn give(&mut self, take: &mut dyn FnMut(u64, Tensor)) {
        for leaf in self.whole.drain(..) {
            if let Some(gradient) = self.sums.remove(&leaf) {
                take(leaf, gradient);
            }
        }
    }
}

/// How often each leaf is used by these and the graph below them.
fn uses<'a>(outputs: impl Iterator<Item = &'a Arc<Node>>) -> BTreeMap<u64, usize> {
    let (mut uses, mut seen, mut stack) = (BTreeMap::new(), HashSet::new(), outputs.collect::<Vec<_>>());
    while let Some(node) = stack.pop() {
        if node.is_leaf() {
            *uses.entry(node.id).or_default() += 1;
        } else if seen.insert(node.id) {
            if let Kind::Checkpoint { captured, .. } = &node.kind {
                captured.iter().for_each(|&leaf| *uses.entry(leaf).or_default() += 1);
            }
            stack.extend(node.edges().iter().flatten());
        }
    }
    uses
}

/// The one place where broadcasting is undone: sums a gradient over the dimensions that its input was stretched along.
fn sum_to(gradient: Tensor, dims: Dims) -> Tensor {
    if *gradient.dims() == dims {
        return gradient;
    }
    let added = gradient
        .rank()
        .checked_sub(dims.len())
        .unwrap_or_else(|| panic!("a gradient of dims {:?} for an input of {dims:?}", gradient.dims()));
    let stretched: Vec<usize> =
        (0..gradient.rank()).filter(|&k| k < added || dims[k - added] != gradient.dims()[k]).collect();
    assert!(
        stretched.iter().all(|&k| k < added || dims[k - added] == 1),
        "a gradient of dims {:?} for an input of {dims:?}",
        gradient.dims()
    );
    gradient.sum(&stretched, true).reshape(dims)
}

impl Tensor {
    fn as_leaf(&self) -> Tensor {
        self.detach().with_node(Some(Node::leaf()))
    }
}

thread_local! {
    static RECOMPUTING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; where `on`, networks on this thread keep only the inputs of their blocks for backward, which computes these again
/// ([`checkpoint`]): the same bits for less memory and one more forward.
pub fn recomputing<R>(on: bool, f: impl FnOnce() -> R) -> R {
    scoped::with(&RECOMPUTING, on, f)
}

/// A block of a network on `x`, which is computed again in backward where this thread says so ([`recomputing`]).
pub fn through<B: Clone + Send + Sync + 'static>(
    block: &B,
    x: &Tensor,
    forward: impl Fn(&B, &Tensor) -> Tensor + Send + Sync + 'static,
) -> Tensor {
    if !RECOMPUTING.get() {
        return forward(block, x);
    }
    let block = block.clone();
    checkpoint(&[x], move |x| forward(&block, &x[0]))
}

/// Runs `f` on `x` keeping only the inputs; backward runs it again. Trades one more forward for the memory of
/// everything between. `f` must compute the same every time; parameters that it captures get their gradients.
pub fn checkpoint(x: &[&Tensor], f: impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static) -> Tensor {
    let inputs: Vec<Tensor> = x.iter().map(|t| t.detach()).collect();
    let products = Products::current();
    let f = move |x: &[Tensor]| products.within(|| f(x));
    // Whether a captured parameter reaches the output shows on the result; its graph is freed here.
    let output = f(&inputs);
    let captured = uses(output.node().into_iter()).into_keys().collect();
    let tracked = output.is_tracked() || x.iter().any(|t| t.is_tracked());
    let output = output.detach();
    if !tracked {
        return output;
    }
    let edges = x.iter().map(|t| t.node().cloned()).collect();
    output.with_node(Some(Node::new(Kind::Checkpoint { run: Box::new(f), edges, inputs, captured })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::rng::Rng;

    #[test]
    fn shared_inputs_add_their_gradients() {
        let x = Tensor::from_slice(&[3.0, -1.0], [2]).trainable();
        let y = x.mul(&x) + x.affine(2.0, 0.0);
        let grads = y.sum_all().backward();
        assert_eq!(grads.get(&x).unwrap().to_vec::<f64>(), [8.0, 0.0]);
    }

    #[test]
    fn a_deep_graph_neither_overflows_backward_nor_drop() {
        let x = Tensor::from_slice(&[1.0], [1]).trainable();
        let deep = || (0..200_000).fold(x.clone(), |y, _| y.affine(1.0, 0.0));
        drop(deep());
        assert_eq!(deep().sum_all().backward().get(&x).unwrap().item(), 1.0);
    }

    #[test]
    fn backward_frees_what_it_used() {
        let mut x = Tensor::zeros([1000], DType::F32).trainable();
        let y = x.square().exp().sum_all();
        assert!(!x.buffer().is_unshared(), "square keeps its input");
        drop(y.backward());
        assert!(x.as_mut_slice::<f32>().is_some(), "after backward nothing holds the parameter");
    }

    #[test]
    fn a_checkpoint_changes_memory_and_nothing_else() {
        let mut rng = Rng::new(3, 0);
        let w = Tensor::randn([4], DType::F64, &mut rng).trainable();
        let x = Tensor::randn([3, 4], DType::F64, &mut rng).trainable();
        let block = |x: &Tensor, w: &Tensor| x.mul(w).tanh().mul(x);
        let plain = block(&x, &w).sum_all().backward();
        let kept = w.clone();
        let again = checkpoint(&[&x], move |x| block(&x[0], &kept)).sum_all().backward();
        for leaf in [&x, &w] {
            assert_eq!(plain.get(leaf).unwrap().to_vec::<f64>(), again.get(leaf).unwrap().to_vec::<f64>());
        }
    }

    #[test]
    fn a_leaf_is_given_when_nothing_holds_it_and_only_then() {
        let mut first = Some(Tensor::from_slice(&[2.0, 3.0], [2]).trainable());
        let second = Tensor::from_slice(&[5.0, 7.0], [2]).trainable();
        let [a, b] = [first.as_ref().unwrap().leaf().unwrap(), second.leaf().unwrap()];
        // The first is used by the last op and by the first one, the second in between.
        let x = first.take().unwrap();
        let y = x.square().mul(&second).mul(&x).sum_all();
        let (x, mut second) = (std::cell::RefCell::new(x), Some(second));
        let mut given = Vec::new();
        y.backward_into(&mut |leaf, gradient| {
            if leaf == a {
                assert!(x.borrow_mut().as_mut_slice::<f64>().is_some(), "the graph holds it still");
            } else {
                // The square, which is to come, holds the other.
                assert!(
                    second.as_mut().unwrap().as_mut_slice::<f64>().is_some()
                        && x.borrow_mut().as_mut_slice::<f64>().is_none()
                );
            }
            given.push((leaf, gradient.to_vec::<f64>()));
        });
        assert_eq!(given, [(b, vec![8.0, 27.0]), (a, vec![60.0, 189.0])]);
    }

    #[test]
    fn gradients_stop_where_they_are_told_to() {
        let x = Tensor::from_slice(&[2.0], [1]).trainable();
        let y = x.detach().square() + x.clone();
        assert_eq!(y.sum_all().backward().get(&x).unwrap().item(), 1.0);
        assert!(!x.detach().square().is_tracked());
    }
}
