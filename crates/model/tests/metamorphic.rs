//! What must not change a score, and what must, whichever way it is computed.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use std::path::Path;

use burn::tensor::Device;
use common::{Golden, family, floats, largest_difference};
use retort_model::{Batch, CrossEncoder, Encoded, Head, HostBert, PairTokenizer, score};

/// Of logits of a few units: rounding, and nothing else.
const ROUNDING: f32 = 1e-5;

#[test]
fn a_pair_alone_scores_as_in_any_batch() {
    for way in ways() {
        let alone = way.alone();
        // Every set of pairs, in their order: 2, 3 … together, beside longer ones and shorter.
        for members in 1..1 << way.pairs.len() {
            let chosen: Vec<usize> = (0..way.pairs.len())
                .filter(|place| (members >> place) & 1 == 1)
                .collect();
            way.check(&chosen, &alone);
        }
        // A pair beside itself.
        way.check(&[0, 0, 1, 0], &alone);
    }
}

#[test]
fn the_order_of_a_batch_does_not_matter() {
    for way in ways() {
        let alone = way.alone();
        let mut order: Vec<usize> = (0..way.pairs.len()).collect();
        for _ in 0..order.len() {
            order.rotate_left(1);
            way.check(&order, &alone);
            let reversed: Vec<usize> = order.iter().rev().copied().collect();
            way.check(&reversed, &alone);
        }
    }
}

#[test]
fn padding_does_not_change_a_score() {
    for way in ways() {
        let alone = way.alone();
        for (pair, alone) in way.pairs.iter().zip(alone) {
            assert!(pair.len() < way.longest.len());
            let padded = (way.logits)(&[pair, &way.longest]);
            let difference = (padded[0] - alone).abs();
            assert!(difference < ROUNDING, "{}: {difference:e}", way.name);
        }
    }
}

#[test]
fn swapped_texts_change_a_score() {
    for way in ways() {
        let swapped: Vec<&Encoded> = way.swapped_texts.iter().collect();
        let difference = largest_difference(&(way.logits)(&swapped), &way.alone());
        assert!(difference > 1e-3, "{}: {difference:e}", way.name);
    }
}

#[test]
fn swapped_segments_change_a_score_where_a_model_reads_them() {
    for way in ways() {
        let mut swapped = way.pairs.clone();
        for pair in &mut swapped {
            pair.token_type_ids
                .iter_mut()
                .for_each(|segment| *segment = 1 - *segment);
        }
        let swapped: Vec<&Encoded> = swapped.iter().collect();
        let difference = largest_difference(&(way.logits)(&swapped), &way.alone());
        if way.reads_segments {
            assert!(difference > 1e-3, "{}: {difference:e}", way.name);
        } else {
            assert!(difference < ROUNDING, "{}: {difference:e}", way.name);
        }
    }
}

#[test]
fn keeping_all_layers_changes_nothing() {
    for folder in family() {
        let keep_all = |model: CrossEncoder| {
            let config = model.config().clone();
            let layers: Vec<usize> = (0..config.num_hidden_layers).collect();
            let kept = model.keep_layers(&layers).unwrap();
            assert_eq!(*kept.config(), config);
            kept
        };
        let kept = ways_of(&folder, keep_all);
        for (way, kept) in ways_of(&folder, |model| model).iter().zip(kept) {
            assert_eq!(way.alone(), kept.alone(), "{}", way.name);
        }
    }
}

/// From inputs to their logits.
type Logits = Box<dyn Fn(&[&Encoded]) -> Vec<f32>>;

/// How one architecture's logits are computed, and what of.
struct Way {
    name: String,
    logits: Logits,
    reads_segments: bool,
    pairs: Vec<Encoded>,
    swapped_texts: Vec<Encoded>,
    /// As many tokens as the model reads.
    longest: Encoded,
}

impl Way {
    /// Each pair computed by itself.
    fn alone(&self) -> Vec<f32> {
        let alone = |pair| (self.logits)(&[pair])[0];
        self.pairs.iter().map(alone).collect()
    }

    /// The pairs in these places, computed together, against themselves alone.
    fn check(&self, places: &[usize], alone: &[f32]) {
        let inputs: Vec<&Encoded> = places.iter().map(|place| &self.pairs[*place]).collect();
        let expected: Vec<f32> = places.iter().map(|place| alone[*place]).collect();
        let difference = largest_difference(&(self.logits)(&inputs), &expected);
        assert!(
            difference < ROUNDING,
            "{}, the pairs {places:?}: {difference:e}",
            self.name
        );
    }
}

/// All ways of all architectures.
fn ways() -> Vec<Way> {
    let folders = family();
    let ways = folders.iter().map(|folder| ways_of(folder, |model| model));
    ways.flatten().collect()
}

/// What a change of a model in that folder computes: as scoring does, in one padded batch with
/// autodiff and without, and with the CPU's own passes where it has them.
fn ways_of(folder: &Path, change: impl Fn(CrossEncoder) -> CrossEncoder) -> Vec<Way> {
    let golden = Golden::of(folder);
    let load = |device: &Device| {
        change(CrossEncoder::load(folder, Head::Required, Some(0.0), device).unwrap())
    };
    let model = load(&Device::flex());
    let graph = |device: Device| {
        let model = load(&device);
        move |inputs: &[&Encoded]| {
            floats(model.forward(&Batch::new(inputs, model.config(), &device)))
        }
    };
    let swapped: Vec<(&str, &str)> = golden.pairs().iter().map(|&(q, d)| (d, q)).collect();
    let tokenizer = PairTokenizer::open(folder, 64).unwrap();
    let swapped_texts = tokenizer.encode_pairs(&swapped).unwrap();
    let longest = vec![golden.input_ids[0][1]; model.config().max_tokens()];
    let way = |name: &str, logits: Logits| Way {
        name: format!("{}, {name}", folder.display()),
        logits,
        reads_segments: model.config().reads_segments(),
        pairs: golden.encoded(),
        swapped_texts: swapped_texts.clone(),
        longest: Encoded {
            token_type_ids: vec![0; longest.len()],
            input_ids: longest.clone(),
        },
    };
    let mut ways = vec![
        way("one batch", Box::new(graph(Device::flex()))),
        way(
            "one batch in training",
            Box::new(graph(Device::flex().autodiff())),
        ),
    ];
    if let Some(host) = HostBert::of(&model) {
        let logits = move |inputs: &[&Encoded]| host.forward(inputs, 2, 40, 0).logits;
        ways.push(way("the CPU's passes", Box::new(logits)));
    }
    let scoring = load(&Device::flex());
    let logits = move |inputs: &[&Encoded]| {
        let inputs: Vec<Encoded> = inputs.iter().copied().cloned().collect();
        score(&scoring, &inputs, 40).unwrap()
    };
    ways.push(way("scoring", Box::new(logits)));
    ways
}
