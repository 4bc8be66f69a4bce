//! One epoch's batches: pictures that are made in any order, by whoever has time, and given in the epoch's.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kernels_cpu::par;

use super::{Batch, LoaderOptions, Shared};
use crate::error::{At, Error, Result};
use crate::tensor::Tensor;

/// Views of an image, and notes on its file.
pub(super) type Made = (Vec<Vec<f32>>, Vec<String>);

/// One epoch's work, shared by its workers and its iterator.
pub(super) struct Work {
    shared: Arc<Shared>,
    epoch: u64,
    order: Vec<usize>,
    /// Number of batches.
    end: usize,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    /// The picture that is begun next, as its place in the order.
    pub(super) next: usize,
    /// The batch that the iterator gives next.
    wanted: usize,
    /// Batches that are begun and not given.
    making: BTreeMap<usize, Making>,
    /// Tasks that make pictures ahead.
    workers: usize,
    /// Pictures that are being made.
    pub(super) busy: usize,
    stop: bool,
}

/// A batch whose pictures come one by one, in any order.
struct Making {
    /// Per view, f32 [n, channels, crop, crop].
    planes: Vec<Vec<f32>>,
    /// Per picture that is there, the notes on it.
    notes: Vec<Option<Result<Vec<String>>>>,
    left: usize,
}

impl Making {
    fn new(pictures: usize, views: usize, numel: usize) -> Self {
        let planes = (0..views).map(|_| vec![0.0; pictures * numel]).collect();
        Self { planes, notes: (0..pictures).map(|_| None).collect(), left: pictures }
    }

    fn take(&mut self, place: usize, made: Result<Made>) {
        self.left -= 1;
        self.notes[place] = Some(made.map(|(views, notes)| {
            for (plane, view) in self.planes.iter_mut().zip(&views) {
                plane[place * view.len()..][..view.len()].copy_from_slice(view);
            }
            notes
        }));
    }

    /// The batch of `rows`, all of which are there; the first error unless broken files are left out.
    fn finish(mut self, rows: &[usize], options: &LoaderOptions) -> Result<Batch> {
        let p = &options.preprocess;
        let (mut read, mut notes, mut broken) = (Vec::with_capacity(rows.len()), Vec::new(), Vec::new());
        for (place, (&row, noted)) in rows.iter().zip(self.notes.into_iter().flatten()).enumerate() {
            match noted {
                Ok(of_it) => {
                    let (from, to) = (place * p.numel(), read.len() * p.numel());
                    self.planes.iter_mut().for_each(|plane| plane.copy_within(from..from + p.numel(), to));
                    read.push(row);
                    notes.push(of_it);
                }
                Err(error) if options.skip_broken => broken.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        let dims = [read.len(), p.channels, p.crop, p.crop];
        let pixels = |plane: &Vec<f32>| Tensor::from_slice(&plane[..read.len() * p.numel()], dims);
        let views = self.planes.iter().map(pixels).collect();
        Ok(Batch { rows: read, views, notes, broken })
    }
}

impl Work {
    /// The state is whole whenever the lock is free, so that a panic elsewhere does not spoil it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of a batch.
    fn rows(&self, batch: usize) -> &[usize] {
        let size = self.shared.options.batch;
        &self.order[batch * size..self.order.len().min((batch + 1) * size)]
    }

    /// Whether there is a picture left in batches before `end`.
    fn is_left(&self, state: &State, end: usize) -> bool {
        let size = self.shared.options.batch;
        !state.stop && state.next < self.order.len().min(end.min(self.end) * size)
    }

    /// A worker's task: makes one picture ahead, and asks for another task while there are more.
    fn work(self: Arc<Self>) {
        let mut state = self.lock();
        if self.is_left(&state, state.wanted + AHEAD) {
            state = self.make(state);
        }
        if self.is_left(&state, state.wanted + AHEAD) {
            drop(state);
            par::background(|| self.work());
        } else {
            state.workers -= 1;
        }
    }

    /// Makes the next picture, of which there is one.
    fn make<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let LoaderOptions { batch: size, views, preprocess, .. } = &self.shared.options;
        let (batch, place) = (state.next / size, state.next % size);
        let image = self.order[state.next];
        state.next += 1;
        state.busy += 1;
        drop(state);
        // A picture that is lost without a word would leave its batch waited for forever.
        let made = catch_unwind(AssertUnwindSafe(|| self.shared.views(self.epoch, image))).unwrap_or_else(|_| {
            Err(Error::new("the loader gave up on this image; please report it")).at(self.shared.paths[image].clone())
        });
        let mut state = self.lock();
        state.busy -= 1;
        let making = state.making.entry(batch);
        making.or_insert_with(|| Making::new(self.rows(batch).len(), *views, preprocess.numel())).take(place, made);
        self.changed.notify_all();
        state
    }
}

/// Batches that are made ahead of the one that is in use, where there are workers.
const AHEAD: usize = 1;

/// Batches of pixels that a loader of so many batches holds beside the one that is in use, at most.
pub(crate) fn held(batches: usize, workers: usize) -> usize {
    // One that is made, or made into tensors, and one beside it.
    batches.min(1 + AHEAD.min(workers))
}

/// The batches of an epoch, in order; see [`Loader::epoch`](super::Loader::epoch).
pub struct Epoch(pub(super) Arc<Work>);

impl Epoch {
    /// Batches of the images in `order` from number `from_batch` to `end`.
    pub(super) fn new(shared: Arc<Shared>, epoch: u64, order: Vec<usize>, from_batch: usize, end: usize) -> Self {
        let next = order.len().min(from_batch.saturating_mul(shared.options.batch));
        let state = State { next, wanted: from_batch, making: BTreeMap::new(), workers: 0, busy: 0, stop: false };
        Self(Arc::new(Work { shared, epoch, order, end, state: Mutex::new(state), changed: Condvar::new() }))
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let work = &self.0;
        let mut state = work.lock();
        let number = state.wanted;
        if state.stop || number >= work.end {
            return None;
        }
        state.wanted += 1;
        let idle = work.shared.options.workers.saturating_sub(state.workers);
        state.workers += idle;
        drop(state);
        for _ in 0..idle {
            let work = work.clone();
            par::background(|| work.work());
        }
        let mut state = work.lock();
        let making = loop {
            if state.making.get(&number).is_some_and(|making| making.left == 0) {
                break state.making.remove(&number)?;
            }
            state = if work.is_left(&state, number + 1) {
                work.make(state)
            } else {
                work.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        };
        drop(state);
        let batch = making.finish(work.rows(number), &work.shared.options);
        if batch.is_err() {
            work.lock().stop = true;
        }
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let state = self.0.lock();
        let left = if state.stop { 0 } else { self.0.end.saturating_sub(state.wanted) };
        (0, Some(left))
    }
}

impl Drop for Epoch {
    /// Waits for the pictures that are being made, so that no file is open afterwards.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stop = true;
        drop(self.0.changed.wait_while(state, |state| state.busy > 0));
    }
}
