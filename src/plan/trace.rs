//! What a computation on this thread does, step by step: the tape of a plan.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use crate::buffer::uncomputed;
use crate::dtype::DType;
use crate::layout::Layout;
use crate::op::{Meta, Op, Output};
use crate::tensor::Tensor;

/// Number of a value in a trace.
pub(super) type Slot = usize;

/// Where a value comes from.
pub(super) enum Origin {
    /// Given at every run: the i-th input.
    Input,
    /// The same at every run: a parameter, or made of such alone.
    Constant(Tensor),
    /// Made by a step.
    Step,
}

/// One op, as it ran.
pub(super) struct Traced {
    pub op: Box<dyn Op>,
    pub inputs: Vec<Slot>,
    pub out: Meta,
    /// The value and the by-products.
    pub outputs: Vec<Slot>,
}

/// What was seen so far.
#[derive(Default)]
pub(super) struct Trace {
    pub steps: Vec<Traced>,
    pub origins: Vec<Origin>,
    pub metas: Vec<Meta>,
    slots: HashMap<Key, Slot>,
    /// Buffers whose values are another run's others.
    changing: HashSet<u64>,
}

/// The same bytes seen the same way are the same value: buffers are not written after they were made.
type Key = (u64, Layout, DType);

fn key(x: &Tensor) -> Key {
    (x.buffer().id(), *x.layout(), x.dtype())
}

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
    /// Whether a trace is under way here, outside of an op.
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

impl Trace {
    fn add(&mut self, x: &Tensor, origin: Origin) -> Slot {
        if !matches!(origin, Origin::Constant(_)) {
            self.changing.insert(x.buffer().id());
        }
        self.origins.push(origin);
        self.metas.push(x.meta());
        self.slots.insert(key(x), self.origins.len() - 1);
        self.origins.len() - 1
    }

    /// The number of a value; one that no step made is a constant.
    pub(super) fn slot(&mut self, x: &Tensor) -> Slot {
        match self.slots.get(&key(x)) {
            Some(&slot) => slot,
            None => self.add(x, Origin::Constant(x.detach())),
        }
    }

    fn record(&mut self, op: Box<dyn Op>, x: &[&Tensor], out: Meta, output: &Output) {
        let inputs: Vec<Slot> = x.iter().map(|x| self.slot(x)).collect();
        let made: Vec<&Tensor> = std::iter::once(&output.value).chain(&output.aux).collect();
        if inputs.iter().all(|&slot| matches!(self.origins[slot], Origin::Constant(_))) {
            made.into_iter().for_each(|x| {
                self.add(x, Origin::Constant(x.detach()));
            });
            return;
        }
        let outputs = made.into_iter().map(|x| self.add(x, Origin::Step)).collect();
        self.steps.push(Traced { op, inputs, out, outputs });
    }
}

/// Runs `f` on `x` for the dims alone, but for ops of constants, and writes down its ops. Gives the trace with the slots of `x`, and the results,
/// whose values are not computed.
pub(super) fn trace(x: &[Tensor], f: impl FnOnce(&[Tensor]) -> Vec<Tensor>) -> (Trace, Vec<Slot>, Vec<Tensor>) {
    let mut trace = Trace::default();
    // Bytes of their own, so that no parameter is taken for an input that shares its bytes.
    let x: Vec<Tensor> = x.iter().map(Tensor::copied).collect();
    let inputs = x.iter().map(|x| trace.add(x, Origin::Input)).collect();
    let before = TRACE.replace(Some(trace));
    assert!(before.is_none(), "a plan is traced inside another's trace");
    let listening = Listening::set(true);
    let results = f(&x);
    drop(listening);
    (TRACE.take().expect("set above"), inputs, results)
}

/// Sets whether this thread listens until it is dropped, also by a panic.
struct Listening(bool);

impl Listening {
    fn set(now: bool) -> Self {
        Self(LISTENING.replace(now))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENING.set(self.0);
        if !self.0 && std::thread::panicking() {
            TRACE.take();
        }
    }
}

/// Runs an op's arm on `x`, whose own reads and inner ops are not the trace's business. A trace needs the values of constants alone.
pub(crate) fn inside<R>(x: &[&Tensor], f: impl FnOnce() -> R) -> R {
    if !LISTENING.get() {
        return f();
    }
    let _quiet = Listening::set(false);
    match x.iter().any(|x| changes(x.buffer().id())) {
        true => uncomputed(f),
        false => f(),
    }
}

/// Whether another run has another value there.
fn changes(buffer: u64) -> bool {
    TRACE.with_borrow(|trace| trace.as_ref().is_some_and(|trace| trace.changing.contains(&buffer)))
}

/// Whether ops are being written down here.
pub(crate) fn is_listening() -> bool {
    LISTENING.get()
}

/// Writes down an op that ran.
pub(crate) fn record(op: Box<dyn Op>, x: &[&Tensor], out: Meta, output: &Output) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            trace.record(op, x, out, output);
        }
    });
}

/// Refuses to read a value that another run would have otherwise: what is made of it outside of ops would be frozen.
#[track_caller]
pub(crate) fn check_read(buffer: u64) {
    if LISTENING.get() {
        assert!(
            !changes(buffer),
            "a value that depends on a plan's inputs is read outside of an op: the plan would keep what it saw"
        );
    }
}
