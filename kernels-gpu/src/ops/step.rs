//! Steps of optimisers, in place. What changes from step to step lies in memory and not in the commands, which are recorded once.

use crate::device::Device;
use crate::error::Result;
use crate::shaders::Shader;
use crate::view::{View, in_fours};

/// How long the gradient is that a step is one part of, and how long it may be.
#[derive(Clone, Copy)]
pub struct Clip<'a> {
    /// The sum of its squares, one number. Where it is not finite the step changes nothing.
    pub squares: View<'a>,
    /// The largest norm, to which a longer gradient is scaled; 0: any.
    pub most: f32,
}

impl Device {
    /// One step of Adam or AdamW with gradient g; all contiguous, p, m and v changed in place. See kernels-cpu's `adam`; `constants` are its
    /// `Adam::constants`.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn adam(&self, g: View<'_>, [p, m, v]: [View<'_>; 3], constants: View<'_>, clip: Clip<'_>) -> Result<()> {
        assert_eq!(constants.numel(), 8, "adam: constants");
        self.step(0, g, &[p, m, v], constants, Some(clip))
    }

    /// One step of stochastic gradient descent with momentum, as kernels-cpu's `sgd`; `constants` are learning rate, momentum and weight decay.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn sgd(&self, g: View<'_>, [p, m]: [View<'_>; 2], constants: View<'_>, clip: Clip<'_>) -> Result<()> {
        assert_eq!(constants.numel(), 3, "sgd: constants");
        self.step(1, g, &[p, m], constants, Some(clip))
    }

    /// p += share (g - p): an average's step towards g. The share is one number.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn follow(&self, g: View<'_>, p: View<'_>, share: View<'_>) -> Result<()> {
        assert_eq!(share.numel(), 1, "follow: share");
        self.step(2, g, &[p], share, None)
    }

    fn step(
        &self,
        rule: u32,
        g: View<'_>,
        changed: &[View<'_>],
        constants: View<'_>,
        clip: Option<Clip<'_>>,
    ) -> Result<()> {
        let fits = changed.iter().all(|x| x.is_contiguous() && x.numel() == g.numel());
        assert!(
            fits && g.is_contiguous() && constants.is_contiguous(),
            "a step: layouts, or sizes beside {:?}",
            g.dims
        );
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
        let (binding, constants_at) = constants.bind(4)?;
        bindings.push(binding);
        let (mut squares_at, mut most) = (0, 0.0f32);
        if let Some(clip) = clip {
            let (binding, at) = clip.squares.bind(5)?;
            bindings.push(binding);
            (squares_at, most) = (at, clip.most);
        }
        let by = in_fours(g.numel(), &[&[g_at][..], &places].concat());
        let places = places.map(|at| at / by);
        let push =
            [&[g.numel() as u32 / by, g_at / by][..], &places, &[constants_at, squares_at, most.to_bits()]].concat();
        self.places(Shader::Step, [by, 1], &[rule], &bindings, &push, g.numel())
    }
}
