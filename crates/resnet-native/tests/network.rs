//! Whole networks: gradients against finite differences of a double-precision forward pass, and the
//! promises about threads, partial batches and repetition.

mod reference;

use std::collections::{HashMap, HashSet};

use reference::network::{CLASSES, Shortcut, batch, graph, session};
use reference::to_f64;
use resnet_graph::{Graph, Outcome, ParamGroup, Part, Precision, Rule, Shape, Targets, Update};
use resnet_native::{Error, Isa, Options, Session};

/// The last convolution is just large enough for Winograd's method.
const INPUT: Shape = Shape::new(3, 7, 8);

fn step(session: &mut Session, pixels: &[f32], labels: &[u32], smoothing: f32) -> Outcome {
    session.forward_backward(pixels, &labels.to_vec().into(), smoothing, Part::WHOLE).expect("a step")
}

fn update(session: &mut Session) {
    let rule = Rule::Sgd { momentum: 0.9, nesterov: false };
    let update = Update::uniform(rule, 0.1, 1e-4, session.parameters().len());
    session.apply(&update).expect("an update of all parameters");
}

fn state(session: &Session) -> HashMap<String, Vec<f64>> {
    session.tensors().iter().map(|placed| (placed.name.clone(), to_f64(session.values(placed)))).collect()
}

/// Loss and gradients of one pass, with the loss and the finite differences they should equal.
fn check_gradients(kind: Shortcut, images: usize, smoothing: f32, isa: Isa) {
    let graph = graph(INPUT, kind);
    let mut session = session(&graph, Options { threads: 2, isa: Some(isa), ..Options::default() });
    let (pixels, labels) = batch(INPUT, images);
    let mut values = state(&session);
    let outcome = step(&mut session, &pixels, &labels, smoothing);
    let pixels = to_f64(&pixels);
    let loss = |values: &HashMap<String, Vec<f64>>| {
        reference::loss(&graph, &|name| values[name].clone(), &pixels, &labels, smoothing.into())
    };
    let exact = loss(&values);
    assert!((f64::from(outcome.loss) - exact).abs() < 1e-6 * exact, "{kind:?}: loss {} is not {exact}", outcome.loss);
    let parameters: Vec<_> = session.tensors().parameters().cloned().collect();
    for placed in parameters {
        let found = session.gradients()[placed.range.clone()].to_vec();
        let largest = found.iter().fold(1e-3f32, |max, g| max.max(g.abs()));
        let step = placed.len().div_ceil(12); // a dozen entries of each tensor
        for index in (0..placed.len()).step_by(step) {
            const H: f64 = 1e-6;
            let mut at = |offset: f64| {
                values.get_mut(&placed.name).expect("a parameter")[index] += offset;
                loss(&values)
            };
            let (up, down) = (at(H), at(-2.0 * H));
            at(H);
            let difference = (up - down) / (2.0 * H);
            let error = (f64::from(found[index]) - difference).abs();
            let name = &placed.name;
            assert!(
                error < 1e-5 * f64::from(largest),
                "{kind:?} {name}[{index}]: {} is not {difference}",
                found[index]
            );
        }
    }
}

#[test]
fn gradients_equal_finite_differences_on_every_instruction_set() {
    for isa in Isa::available() {
        for kind in [Shortcut::Plain, Shortcut::A, Shortcut::C] {
            check_gradients(kind, 5, 0.0, isa);
        }
        check_gradients(Shortcut::A, 18, 0.1, isa);
    }
}

/// What bf16 gives, `tests/bf16.rs` compares with a reference that rounds as it does.
#[test]
fn tf32_gives_the_gradients_of_single_precision_but_for_rounding() {
    const MOST: f64 = 0.01;
    for (kind, images) in [(Shortcut::Plain, 40), (Shortcut::A, 64), (Shortcut::C, 19)] {
        let gradients = |precision, isa| {
            let mut session = session(&graph(INPUT, kind), Options { threads: 2, isa: Some(isa), precision });
            let (pixels, labels) = batch(INPUT, images);
            let outcome = step(&mut session, &pixels, &labels, 0.0);
            let tensors = session.tensors().clone();
            let named: Vec<_> = tensors
                .parameters()
                .map(|placed| (placed.name.clone(), to_f64(&session.gradients()[placed.range.clone()])))
                .collect();
            (f64::from(outcome.loss), named)
        };
        let (loss, exact) = gradients(Precision::F32, Isa::Portable);
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        for isa in Isa::available() {
            let (found_loss, found) = gradients(Precision::Tf32, isa);
            let what = format!("{kind:?} {}", isa.name());
            assert!((found_loss - loss).abs() < 0.03 * MOST * loss, "{what}: loss {found_loss} is not {loss}");
            for ((name, exact), (_, found)) in exact.iter().zip(&found) {
                let differences: Vec<f64> = exact.iter().zip(found).map(|(a, b)| a - b).collect();
                let error = norm(&differences) / norm(exact);
                assert!(error < MOST, "{what} {name}: relative error {error}");
            }
        }
    }
}

/// Parameters, statistics and gradients after a few steps, as bits.
fn trained(threads: usize, precision: Precision, batches: &[usize]) -> Vec<u32> {
    let mut session = session(&graph(INPUT, Shortcut::C), Options { threads, precision, isa: None });
    for &images in batches {
        let (pixels, labels) = batch(INPUT, images);
        step(&mut session, &pixels, &labels, 0.0);
        update(&mut session);
    }
    let mut bits: Vec<u32> = session.gradients().iter().map(|v| v.to_bits()).collect();
    for placed in session.tensors() {
        bits.extend(session.values(placed).iter().map(|v| v.to_bits()));
    }
    bits
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let batches = [37, 64, 3];
    for precision in Precision::ALL {
        let one = trained(1, precision, &batches);
        for threads in [2, 3, 8] {
            assert_eq!(one, trained(threads, precision, &batches), "{threads} threads, {}", precision.name());
        }
    }
}

#[test]
fn inference_does_not_depend_on_how_images_share_a_batch_or_on_threads() {
    for precision in Precision::ALL {
        let mut session = session(&graph(INPUT, Shortcut::A), Options { precision, ..Options::default() });
        let (pixels, _) = batch(INPUT, 200);
        let together = session.infer(&pixels).expect("logits");
        for threads in [1, 3] {
            let mut other =
                reference::network::session(&graph(INPUT, Shortcut::A), Options { threads, precision, isa: None });
            assert_eq!(other.infer(&pixels).expect("logits"), together, "{threads} threads, {}", precision.name());
        }
        for (index, image) in pixels.chunks(INPUT.len()).enumerate().step_by(23) {
            let alone = session.infer(image).expect("logits");
            assert_eq!(alone, together[index * CLASSES..][..CLASSES], "image {index}, {}", precision.name());
        }
    }
}

#[test]
fn inference_gives_the_logits_of_the_definition_with_running_statistics() {
    for kind in [Shortcut::Plain, Shortcut::A, Shortcut::C] {
        let graph = graph(INPUT, kind);
        let (pixels, _) = batch(INPUT, 5);
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.03)] {
            for isa in Isa::available() {
                let mut session = session(&graph, Options { threads: 2, isa: Some(isa), precision });
                let values = state(&session);
                let tensor = |name: &str| values[name].clone();
                let exact = reference::logits(&graph, &tensor, &to_f64(&pixels), 5, reference::Statistics::Running);
                let found = session.infer(&pixels).expect("logits");
                let largest = exact.iter().fold(0f64, |max, value| max.max(value.abs()));
                for (found, exact) in found.iter().zip(&exact) {
                    let error = (f64::from(*found) - exact).abs() / largest;
                    assert!(error < tolerance, "{kind:?} {} {}: {found} is not {exact}", isa.name(), precision.name());
                }
            }
        }
    }
}

#[test]
fn a_network_cut_anywhere_infers_what_the_definition_gives_there() {
    let (pixels, _) = batch(INPUT, 3);
    for kind in [Shortcut::Plain, Shortcut::A, Shortcut::C] {
        let whole = graph(INPUT, kind);
        let whole_session = session(&whole, Options::default());
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.05)] {
            for id in 1..whole.nodes().len() {
                let cut = whole.until(id);
                let mut session = Session::new(&cut, Options { precision, ..Options::default() }).expect("a session");
                for index in 0..session.tensors().len() {
                    let name = session.tensors()[index].name.clone();
                    let of_whole = whole_session.tensors().iter().find(|tensor| tensor.name == name);
                    session.set_values(index, whole_session.values(of_whole.expect("a tensor of the whole")));
                }
                let values = state(&session);
                let tensor = |name: &str| values[name].clone();
                let exact = reference::logits(&cut, &tensor, &to_f64(&pixels), 3, reference::Statistics::Running);
                let found = session.infer(&pixels).expect("values");
                assert_eq!(found.len(), exact.len());
                let largest = exact.iter().fold(0f64, |max, value| max.max(value.abs()));
                for (found, exact) in found.iter().zip(&exact) {
                    let error = (f64::from(*found) - exact).abs() / largest;
                    let (name, precision) = (&whole.nodes()[id].name, precision.name());
                    assert!(error < tolerance, "{kind:?} {name} {precision}: {found} is not {exact}");
                }
            }
        }
    }
}

#[test]
fn only_a_network_with_a_linear_end_trains() {
    let whole = graph(INPUT, Shortcut::A);
    let mut session = session(&whole.until(whole.nodes().len() - 2), Options::default());
    let (pixels, labels) = batch(INPUT, 2);
    let error = session.forward_backward(&pixels, &labels.into(), 0.0, Part::WHOLE).expect_err("no classes");
    assert!(error.to_string().contains("linear"), "{error}");
    assert_eq!(session.infer(&pixels).expect("features").len(), 2 * 9);
    let update = Update::uniform(Rule::Sgd { momentum: 0.9, nesterov: false }, 0.1, 0.0, session.parameters().len());
    assert!(session.apply(&update).is_err(), "there are no gradients");
}

#[test]
fn each_half_is_made_when_it_is_first_needed() {
    let mut session = session(&graph(INPUT, Shortcut::A), Options::default());
    let (pixels, labels) = batch(INPUT, 40);
    assert_eq!(session.arena_bytes(), 0);
    session.infer(&pixels).expect("logits");
    let inference = session.arena_bytes();
    assert!(inference > 0);
    step(&mut session, &pixels, &labels, 0.0);
    assert!(session.arena_bytes() > inference);
}

#[test]
fn inference_follows_what_training_changes() {
    for precision in Precision::ALL {
        let mut trained = session(&graph(INPUT, Shortcut::C), Options { precision, ..Options::default() });
        let (pixels, labels) = batch(INPUT, 20);
        let logits_of = |session: &mut Session| session.infer(&pixels).expect("logits");
        let fresh_logits = |trained: &Session| {
            let mut fresh = session(&graph(INPUT, Shortcut::C), Options { precision, ..Options::default() });
            for index in 0..trained.tensors().len() {
                fresh.set_values(index, trained.values(&trained.tensors()[index]));
            }
            logits_of(&mut fresh)
        };
        let first = logits_of(&mut trained);
        step(&mut trained, &pixels, &labels, 0.0);
        let moved = logits_of(&mut trained);
        assert_ne!(first, moved, "running statistics have moved, {}", precision.name());
        assert_eq!(moved, fresh_logits(&trained), "{}", precision.name());
        update(&mut trained);
        let updated = logits_of(&mut trained);
        assert_ne!(moved, updated, "parameters have changed, {}", precision.name());
        assert_eq!(updated, fresh_logits(&trained), "{}", precision.name());
    }
}

#[test]
fn a_smaller_batch_after_a_larger_one_sees_nothing_of_it() {
    let gradients = |batches: &[usize]| {
        let mut session = session(&graph(INPUT, Shortcut::A), Options::default());
        for &images in batches {
            let (pixels, labels) = batch(INPUT, images);
            step(&mut session, &pixels, &labels, 0.0);
        }
        session.gradients().to_vec()
    };
    let (after_larger, alone) = (gradients(&[50, 19]), gradients(&[19, 19]));
    let largest = alone.iter().fold(0f32, |max, g| max.max(g.abs()));
    // Equal but for the pivot of the moments, which follows the running mean.
    assert!(after_larger.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5 * largest));
}

#[test]
fn a_profile_names_every_step_once_however_many_images_there_are() {
    for precision in Precision::ALL {
        let mut session = session(&graph(INPUT, Shortcut::A), Options { precision, ..Options::default() });
        let mut steps = |images| {
            let (pixels, labels) = batch(INPUT, images);
            step(&mut session, &pixels, &labels, 0.0);
            session
                .profile()
                .iter()
                .map(|step| (step.work, step.node))
                .filter(|step| step.1.is_some())
                .collect::<Vec<_>>()
        };
        let one_group = steps(5);
        assert_eq!(HashSet::<_>::from_iter(&one_group).len(), one_group.len());
        assert_eq!(steps(37), one_group);
        assert_eq!(steps(64), one_group);
    }
}

#[test]
fn gradients_of_pieces_add_up_to_those_of_the_whole_but_for_batch_norm() {
    // Of equal pieces, batch norm sees the same statistics in each and in the whole.
    let (pixels, labels) = batch(INPUT, 6);
    let doubled = [pixels.as_slice(), &pixels].concat();
    let targets = [labels.as_slice(), &labels].concat().into();
    let mut whole = session(&graph(INPUT, Shortcut::C), Options::default());
    let outcome = whole.forward_backward(&doubled, &targets, 0.0, Part::WHOLE).expect("a step");
    let mut pieces = session(&graph(INPUT, Shortcut::C), Options::default());
    for first in [true, false] {
        let part = Part { first, share: 0.5 };
        let piece = pieces.forward_backward(&pixels, &labels.clone().into(), 0.0, part).expect("a step");
        assert!((piece.loss - outcome.loss).abs() < 1e-5, "the loss is the piece's own");
    }
    let largest = whole.gradients().iter().fold(0f32, |max, g| max.max(g.abs()));
    for (found, expected) in pieces.gradients().to_vec().into_iter().zip(whole.gradients()) {
        assert!((found - *expected).abs() < 1e-5 * largest, "{found} is not {expected}");
    }
}

#[test]
fn parameter_groups_are_changed_each_by_its_own_rule() {
    let mut session = session(&graph(INPUT, Shortcut::A), Options::default());
    let (pixels, labels) = batch(INPUT, 8);
    step(&mut session, &pixels, &labels, 0.0);
    let (before, gradients) = (session.parameters().to_vec(), session.gradients().to_vec());
    let ends = [0, before.len() / 3, before.len() / 2, before.len()];
    let group = |index: usize, lr_factor, weight_decay, frozen| ParamGroup {
        range: ends[index]..ends[index + 1],
        lr_factor,
        weight_decay,
        frozen,
    };
    let rule = Rule::Sgd { momentum: 0.9, nesterov: false };
    let groups = vec![group(0, 1.0, 0.0, true), group(1, 0.5, 0.1, false), group(2, 2.0, 0.0, false)];
    session.apply(&Update { rule, lr: 0.25, groups }).expect("an update of all parameters");
    for (at, &found) in session.parameters().iter().enumerate() {
        let (w, g) = (before[at], gradients[at]);
        let expected = match at {
            at if at < ends[1] => w,
            at if at < ends[2] => w - 0.25 * 0.5 * (g + 0.1 * w),
            _ => w - 0.25 * 2.0 * g,
        };
        assert!((found - expected).abs() <= 1e-6 * w.abs().max(1.0), "{at}: {found} is not {expected}");
    }
    let partial = Update { rule, lr: 0.25, groups: vec![group(0, 1.0, 0.0, false)] };
    assert!(session.apply(&partial).expect_err("not all parameters").to_string().contains("do not cover"));
}

#[test]
fn batches_that_do_not_fit_are_refused_with_numbers() {
    let mut session = session(&graph(INPUT, Shortcut::A), Options::default());
    let (pixels, labels) = batch(INPUT, 4);
    let refused = |result: Result<_, Error>| result.expect_err("a batch that does not fit").to_string();
    let mut step =
        |pixels: &[f32], targets: Targets| refused(session.forward_backward(pixels, &targets, 0.0, Part::WHOLE));
    assert!(step(&pixels[1..], labels.clone().into()).contains("3x7x8 (168 values each), found 671"));
    assert!(step(&pixels, labels[1..].to_vec().into()).contains("4 images but 3 labels"));
    assert!(step(&pixels, vec![0, 1, 2, 9].into()).contains("label 9"));
    let soft = Targets::Soft { classes: 3, shares: vec![0.0; 12] };
    assert!(step(&pixels, soft).contains("targets of 3 classes for a network of 4"));
    assert!(refused(session.infer(&[]).map(|_| unreachable!())).contains("found 0"));
}

#[test]
fn graphs_the_engine_cannot_run_are_refused_by_name() {
    let refused = |graph: &Graph| match Session::new(graph, Options::default()) {
        Err(Error::Graph(message)) => message,
        _ => panic!("expected the graph to be refused"),
    };
    let mut lone_relu = Graph::new(INPUT);
    let conv = lone_relu.conv("conv1", Graph::INPUT, 4, 3, 1);
    let relu = lone_relu.relu("lonely", conv);
    let avg_pool = lone_relu.global_avg_pool("avgpool", relu);
    lone_relu.linear("fc", avg_pool, 2);
    assert!(refused(&lone_relu).contains("lonely"));
    let mut no_pooling = Graph::new(INPUT);
    let conv = no_pooling.conv("conv1", Graph::INPUT, 4, 3, 1);
    let norm = no_pooling.batch_norm("bn1", conv);
    no_pooling.linear("fc", norm, 2);
    assert!(refused(&no_pooling).contains("fc: a linear layer must follow global average pooling"));
    let mut shared = Graph::new(INPUT);
    let conv = shared.conv("conv1", Graph::INPUT, 4, 3, 1);
    let norm = shared.batch_norm("bn1", conv);
    shared.add("sum", norm, conv);
    assert!(refused(&shared).contains("bn1: batch norm must follow a convolution that nothing else reads"));
    assert!(refused(&Graph::new(INPUT)).contains("one convolution"));
    let mut read_twice = graph(INPUT, Shortcut::A);
    read_twice.conv("other", Graph::INPUT, 4, 3, 1);
    assert!(refused(&read_twice).contains("one convolution"));
}
