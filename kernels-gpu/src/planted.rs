//! Bugs planted on purpose, which the validation layer has to hear: that it is silent elsewhere then means something. Each needs a recent
//! layer (1.4.363 hears both, 1.3.239 neither) and a process of its own, so they run where they are asked for:
//! `PREFIX/run TEST_BINARY --ignored --test-threads 1 planted`.

use std::cell::Cell;

use crate::device::{Device, Kernel, Options};
use crate::instance::{Validation, validation_messages};
use crate::ops::Function;
use crate::select::Choice;
use crate::shaders::Shader;
use crate::view::View;

thread_local! {
    static WITHOUT_BARRIERS: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn without_barriers() -> bool {
    WITHOUT_BARRIERS.get()
}

fn open(validation: Validation) -> Device {
    Device::open(&Options { choice: Choice::Index(0), validation, ..Options::default() }).expect("a device and a layer")
}

#[test]
#[ignore = "needs a recent validation layer"]
fn planted_missing_barrier_is_heard() {
    let device = open(Validation::Synchronisation);
    let [x, y] = [0, 1].map(|_| device.upload(&[0; 4096]).unwrap());
    let view = |memory| View::new(memory, 0, &[1024], &[1]);
    let twice = |without| {
        WITHOUT_BARRIERS.set(without);
        (0..2).for_each(|_| device.map(Function::Affine(1.0, 1.0), view(&x), view(&y)).unwrap());
        device.wait().unwrap();
    };
    twice(false);
    assert_eq!(validation_messages(), 0);
    twice(true);
    assert!(validation_messages() > 0, "two writes of the same bytes without a barrier went unheard");
}

#[test]
#[ignore = "needs a recent validation layer"]
fn planted_write_beside_what_is_bound_is_heard() {
    let device = open(Validation::Shaders);
    let [x, y] = [0, 1].map(|_| device.upload(&[0; 4096]).unwrap());
    let view = |memory| View::new(memory, 0, &[1000], &[1]);
    let copy = |n: u32| {
        let bindings = [view(&x).bind(0).unwrap().0, view(&y).bind(1).unwrap().0.writing()];
        let mut push = [0; 22];
        (push[0], push[3], push[4], push[10], push[16]) = (n, 1, n, 1, 1);
        device
            .dispatch(Kernel {
                shader: Shader::Copy,
                spec: &[64],
                bindings: &bindings,
                push: &push,
                groups: [16, 1, 1],
                work: 1,
            })
            .unwrap();
        device.wait().unwrap();
    };
    copy(1000);
    assert_eq!(validation_messages(), 0);
    copy(1001);
    assert!(validation_messages() > 0, "a write beside what is bound went unheard");
}
