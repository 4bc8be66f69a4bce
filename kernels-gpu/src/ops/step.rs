//! Steps of optimisers, in place.

use kernels_cpu::optim::Adam;

use crate::device::Device;
use crate::error::Result;
use crate::shaders::Shader;
use crate::view::{View, in_fours};

impl Device {
    /// One step of Adam or AdamW with gradient g; all contiguous, p, m and v changed in place. See kernels-cpu's `adam`.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn adam(&self, g: View<'_>, [p, m, v]: [View<'_>; 3], adam: &Adam) -> Result<()> {
        self.step(0, g, &[p, m, v], &adam.constants().map(|c| c as f32))
    }

    /// One step of stochastic gradient descent with momentum, as kernels-cpu's `sgd`.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn sgd(&self, g: View<'_>, [p, m]: [View<'_>; 2], lr: f64, momentum: f64, weight_decay: f64) -> Result<()> {
        self.step(1, g, &[p, m], &[lr, momentum, weight_decay].map(|c| c as f32))
    }

    /// p += share (g - p): an average's step towards g.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn follow(&self, g: View<'_>, p: View<'_>, share: f32) -> Result<()> {
        self.step(2, g, &[p], &[share])
    }

    fn step(&self, rule: u32, g: View<'_>, changed: &[View<'_>], constants: &[f32]) -> Result<()> {
        let fits = changed.iter().all(|x| x.is_contiguous() && x.numel() == g.numel());
        assert!(fits && g.is_contiguous(), "a step: layouts, or sizes beside {:?}", g.dims);
        if g.numel() == 0 {
            return Ok(());
        }
        let (from, g_at) = g.bind(0)?;
        let (mut bindings, mut places) = (vec![from], [0; 3]);
        for ((number, x), place) in (1..).zip(changed).zip(&mut places) {
            let (binding, at) = x.bind(number)?;
            bindings.push(binding.writing());
            *place = at;
        }
        let constants: Vec<u32> = constants.iter().map(|c| c.to_bits()).collect();
        let by = in_fours(g.numel(), &[&[g_at][..], &places].concat());
        let places = places.map(|at| at / by);
        let push = [&[g.numel() as u32 / by, g_at / by][..], &places, &constants].concat();
        self.places(Shader::Step, [by, 1], &[rule], &bindings, &push, g.numel())
    }
}
