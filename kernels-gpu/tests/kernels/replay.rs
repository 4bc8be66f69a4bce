//! What is asked for again is submitted again and not recorded anew, and only then.

use kernels_gpu::ops::Function;
use kernels_gpu::{Counters, Device, Memory, Options, View};

use super::common::{check, open, words};

const N: usize = 1000;

fn view(memory: &Memory) -> View<'_> {
    View::new(memory, 0, &[N], &[1])
}

fn forms() -> [Device; 2] {
    let all: [fn(&mut Options); 2] = [|_| (), |o| o.staging = true];
    all.map(|change| open(change).unwrap())
}

fn upload(d: &Device, value: f32) -> Memory {
    d.upload(&[value; N].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).unwrap()
}

/// x + the sum of the terms, each added by a kernel to new memory.
fn sum(d: &Device, x: &Memory, terms: &[f32]) -> f32 {
    let mut held: Option<Memory> = None;
    for &term in terms {
        let next = d.memory(4 * N).unwrap();
        d.map(Function::Affine(1.0, term), view(held.as_ref().unwrap_or(x)), view(&next)).unwrap();
        held = Some(next);
    }
    let all = words(&held.unwrap());
    assert!(all.iter().all(|&word| word == all[0]));
    f32::from_bits(all[0])
}

/// Submissions, and those replayed, that `f` makes.
fn counted<R>(d: &Device, f: impl FnOnce() -> R) -> (R, [u64; 2]) {
    let count = |Counters { submitted, replayed, .. }| [submitted, replayed];
    let before = count(d.counters());
    let result = f();
    let after = count(d.counters());
    (result, [0, 1].map(|i| after[i] - before[i]))
}

#[test]
fn a_step_is_recorded_once_and_replayed_until_it_changes() {
    check(1, |_| {
        for d in forms() {
            let [x, y] = [1.0, 1e4].map(|value| upload(&d, value));
            let mut terms: Vec<f32> = (0..400).map(|i| i as f32).collect();
            let all: f32 = terms.iter().sum();
            let mut step = |x: &Memory, change: Option<(usize, f32)>| {
                change.into_iter().for_each(|(at, term)| terms[at] = term);
                counted(&d, || sum(&d, x, &terms))
            };
            (0..2).for_each(|_| assert_eq!(step(&x, None).0, 1.0 + all));
            let (result, [submitted, replayed]) = step(&x, None);
            assert!(result == 1.0 + all && submitted > 4 && replayed == submitted, "{replayed} of {submitted}");
            // A constant, and back.
            let (result, [submitted, replayed]) = step(&x, Some((200, 1200.0)));
            assert!(result == 1001.0 + all && replayed < submitted && replayed > 1, "{replayed} of {submitted}");
            let (result, [submitted, replayed]) = step(&x, Some((200, 200.0)));
            assert!(result == 1.0 + all && replayed == submitted, "{replayed} of {submitted}");
            // What is read, and nothing else: the first kernel alone reads it.
            let (result, [submitted, replayed]) = step(&y, None);
            assert!(result == 1e4 + all && replayed == submitted - 1, "{replayed} of {submitted}");
            // One kernel less, and what follows ends where it ended before.
            let (result, [submitted, replayed]) = counted(&d, || sum(&d, &x, &terms[..399]));
            assert!(result == 1.0 + all - 399.0 && replayed > 1 && replayed < submitted, "{replayed} of {submitted}");
        }
    });
}

/// Nothing waits between the passes, so they begin anywhere in a submission.
#[test]
fn sequences_end_at_the_same_kernels_wherever_they_begin() {
    check(1, |_| {
        let d = open(|_| ()).unwrap();
        let held: Vec<Memory> = (0..8).map(|i| upload(&d, i as f32)).collect();
        let pass = || {
            for i in 0..251 {
                let [from, to] = [i, i * 3 + 1].map(|at| view(&held[at % 8]));
                d.map(Function::Affine(0.5, i as f32), from, to).unwrap();
            }
        };
        (0..40).for_each(|_| pass());
        let (_, [submitted, replayed]) = counted(&d, || (0..40).for_each(|_| pass()));
        assert!(submitted > 50 && 10 * replayed > 9 * submitted, "{replayed} of {submitted}");
        d.wait().unwrap();
    });
}

#[test]
fn what_names_memory_that_was_given_back_is_forgotten() {
    check(1, |_| {
        let d = open(|o| o.memory = Some(300 << 20)).unwrap();
        let small = upload(&d, 0.0);
        let step = |large: &Memory| {
            d.fill(3.0, view(large)).unwrap();
            d.copy(view(large), view(&small)).unwrap();
            d.wait().unwrap();
        };
        for round in 0..6 {
            // Each needs a little more than the one before has left, and there is no room beside that: it is given back first. The next buffer
            // often gets its handle.
            let large = d.memory((200 << 20) + 1024 * round).unwrap();
            // Reading it back does not name what was given back, and may be submitted again.
            let [first, again] = [0, 1].map(|_| {
                d.fill(0.0, view(&small)).unwrap();
                d.wait().unwrap();
                let count = counted(&d, || step(&large)).1;
                assert!(words(&small).iter().all(|&word| word == 3.0f32.to_bits()));
                count
            });
            assert_eq!(first[1], 0, "replayed with memory that was given back");
            assert_eq!(again[0], again[1]);
        }
    });
}

#[test]
fn the_device_has_work_while_kernels_run() {
    check(1, |_| {
        let d = open(|_| ()).unwrap();
        let Some(before) = d.counters().busy else {
            eprintln!("SKIPPED: {} has no timestamps", d.info().name);
            return;
        };
        let start = std::time::Instant::now();
        let x = upload(&d, 1.0);
        assert_eq!(sum(&d, &x, &[1.0; 500]), 501.0);
        d.wait().unwrap();
        let (busy, passed) = (d.counters().busy.unwrap() - before, start.elapsed());
        assert!(!busy.is_zero() && busy < passed.mul_f64(1.01), "busy for {busy:?} of {passed:?}");
    });
}
