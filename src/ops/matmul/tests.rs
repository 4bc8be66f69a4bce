use super::*;
use crate::distance::{self, magnitude};

/// Of bf16 beside an x that is rounded to it too, but for the order of sums.
#[test]
fn a_weight_stored_in_half_computes_as_its_f32_values() {
    let mut g = Gen::new(4, 9);
    for i in 0..60 {
        let (front, [input, output]) = (g.dims(0, 2), [g.size(), g.size()]);
        let dtype = [DType::BF16, DType::F16][i % 2];
        let x = g.tensor(front.followed_by(&[input])).to_dtype(dtype).to_dtype(DType::F32).trainable();
        // Transposed half of the time: the layout of a weight is its file's.
        let weight = if g.rng.chance(0.5) {
            g.tensor([output, input]).to_dtype(dtype)
        } else {
            g.tensor([input, output]).to_dtype(dtype).transpose(0, 1)
        };
        let bias = g.tensor([output]).to_dtype([dtype, DType::F32][i / 2 % 2]);
        let act = g.choose(&[None, Some(Unary::Gelu)]);
        let run = |weight: &Tensor, bias: &Tensor| {
            let y = x.linear(weight, Some(bias), act);
            let value = y.to_vec::<f32>();
            (value, y.sum_all().backward().get(&x).map(Tensor::to_vec::<f32>))
        };
        let (ours, wide) = (run(&weight, &bias), run(&weight.to_dtype(DType::F32), &bias.to_dtype(DType::F32)));
        if dtype == DType::F16 {
            assert_eq!(ours, wide);
            continue;
        }
        for (ours, wide) in [(ours.0, wide.0), (ours.1.unwrap_or_default(), wide.1.unwrap_or_default())] {
            let off = distance::relative(&ours, &wide, 1.0);
            assert!(off <= 2e-6, "{off:e} apart");
        }
    }
}

/// Value and gradients are those of products, in f64, of numbers that were rounded; W may be stored in bf16.
#[test]
fn activations_in_bf16_are_multiplied_as_such() {
    let mut g = Gen::new(6, 9);
    for i in 0..60 {
        let (front, [input, output]) = (g.dims(0, 2), [g.size(), g.size()]);
        let single = |g: &mut Gen, dims: &[usize]| g.tensor(dims).to_dtype(DType::F32);
        let [x, weight, bias] =
            [&front.followed_by(&[input])[..], &[output, input], &[output]].map(|d| single(&mut g, d));
        let dy = single(&mut g, &front.followed_by(&[output]));
        let (x, bias) = (x.to_dtype(DType::BF16).trainable(), bias.trainable());
        let weight = if i % 3 == 0 { weight.to_dtype(DType::BF16) } else { weight.trainable() };
        let y = x.linear(&weight, Some(&bias), None);
        let value = y.detach();
        let grads = crate::backward_with(vec![(y, dy.clone())]);
        let exact = |t: &Tensor| t.detach().to_dtype(DType::BF16).to_dtype(DType::F64);
        let (rows, w) = (rows_of(&exact(&x)), exact(&weight));
        let (slope, whole) = (rows_of(&exact(&dy)), rows_of(&dy.to_dtype(DType::F64)));
        let mut pairs = vec![
            (value, rows.matmul(&w.transpose(0, 1)) + bias.detach().to_dtype(DType::F64)),
            (grads.get(&x).unwrap().clone(), slope.matmul(&w)),
            (grads.get(&bias).unwrap().clone(), whole.sum(&[0], false)),
        ];
        pairs.extend(grads.get(&weight).map(|dw| (dw.clone(), slope.transpose(0, 1).matmul(&rows))));
        assert_eq!(pairs.len(), 3 + usize::from(i % 3 > 0));
        for (k, (ours, exact)) in pairs.iter().enumerate() {
            assert_eq!((ours.dtype(), ours.numel()), (DType::F32, exact.numel()));
            let off = distance::relative(&ours.to_f64_vec(), &exact.to_f64_vec(), 1.0);
            assert!(off <= 2e-6, "{i}, {k}: {off:e} apart, {ours:?} {exact:?}");
        }
    }
}

/// With an activation, whose slope (no more than 1.2) is rounded by 2^-8 where it is multiplied.
#[test]
fn activations_in_bf16_pass_an_activation() {
    let mut g = Gen::new(7, 9);
    for act in [Unary::Gelu, Unary::QuickGelu, Unary::Tanh, Unary::Relu] {
        let [x, w] = [[9, 40], [30, 40]].map(|d| g.tensor(d).to_dtype(DType::BF16).to_dtype(DType::F32));
        let run = |dtype: DType| {
            let (x, w) = (x.to_dtype(dtype).trainable(), w.clone().trainable());
            let y = x.linear(&w, None, Some(act));
            let value = y.detach();
            let grads = y.sum_all().backward();
            [value, grads.get(&x).unwrap().clone(), grads.get(&w).unwrap().clone()].map(|t| t.to_f64_vec())
        };
        let (half, wide) = (run(DType::BF16), run(DType::F32));
        let terms = |t: &Tensor| magnitude(&t.abs().sum(&[0], false).to_f64_vec());
        for (k, most) in [0.0, terms(&w), terms(&x)].into_iter().enumerate() {
            let (off, bound) = (distance::largest(&half[k], &wide[k]), 1.2 / 256.0 * most + 2e-6 * magnitude(&wide[k]));
            assert!(off <= bound, "{act:?} {k}: {off:e} apart, beyond {bound:e}");
        }
        assert!(half[1] != wide[1] || act == Unary::Relu);
    }
}

/// Within half a level of each factor, and a plan has the bits of the eager product: of bf16 too.
#[test]
fn a_weight_of_levels_computes_as_its_values() {
    use crate::plan::Plan;
    let mut g = Gen::new(5, 9);
    for i in 0..60 {
        let (front, [input, output]) = (g.dims(0, 2), [g.size(), g.size()]);
        let x = g.tensor(front.followed_by(&[input])).to_dtype(DType::F32);
        let levels: Vec<i8> = (0..output * input).map(|_| g.rng.below(255) as u8 as i8).collect();
        let levels = Tensor::from_slice(&levels, [output, input]);
        let [scale, bias] = [0, 1].map(|_| g.tensor([output]).to_dtype(DType::F32));
        let (bias, act) = ((i % 3 > 0).then_some(&bias), g.choose(&[None, Some(Unary::Gelu), Some(Unary::Relu)]));
        let weight = levels.to_dtype(DType::F32).mul(&scale.reshape([output, 1]));
        let run = |x: &[Tensor]| vec![x[0].linear_int8(&levels, &scale, bias, act)];
        let eager = run(std::slice::from_ref(&x));
        let expected = x.linear(&weight, bias, act);
        // A level of x is a 127th of the largest, and there are `input` terms; no activation has a slope beyond 1.2.
        let [x_most, weight_most] = [&x, &weight].map(|t| magnitude(&t.to_f64_vec()));
        let bound = 0.6 * input as f64 * x_most / 127.0 * weight_most + 1e-5;
        let off = distance::largest(&eager[0].to_f64_vec(), &expected.to_f64_vec());
        assert!(off <= bound, "{i}: {off:e} apart, beyond {bound:e}");
        let plan = Plan::new(std::slice::from_ref(&x), run).0;
        assert_eq!(plan.run(std::slice::from_ref(&x))[0].to_vec::<f32>(), eager[0].to_vec::<f32>());
        let half = weight.to_dtype(DType::BF16);
        let run = |x: &[Tensor]| vec![x[0].linear(&half, bias, act)];
        let (plan, eager) = (Plan::new(std::slice::from_ref(&x), run).0, run(std::slice::from_ref(&x)));
        assert_eq!(plan.run(std::slice::from_ref(&x))[0].to_vec::<f32>(), eager[0].to_vec::<f32>());
    }
}

#[test]
#[should_panic(expected = "linear: a weight of levels has no derivative")]
fn levels_have_no_derivative() {
    let (levels, scale) = (Tensor::zeros([2, 3], DType::I8), Tensor::zeros([2], DType::F32));
    Tensor::zeros([4, 3], DType::F32).trainable().linear_int8(&levels, &scale, None, None).sum_all().backward();
}

#[test]
#[should_panic(expected = "linear: a weight stored as bf16 has no gradient")]
fn a_weight_stored_in_half_refuses_its_gradient() {
    let weight = Tensor::full([2, 3], 1.0, DType::BF16).trainable();
    Tensor::zeros([4, 3], DType::F32).linear(&weight, None, None).sum_all().backward();
}

#[test]
#[should_panic(expected = "linear")]
fn other_mixed_types_are_refused() {
    Tensor::zeros([4, 3], DType::F64).linear(&Tensor::zeros([2, 3], DType::F16), None, None);
}
