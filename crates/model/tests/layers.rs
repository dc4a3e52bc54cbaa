//! A shallower model from a deeper one.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use common::{Golden, copy_with, family, folder_of, largest_difference, load};
use fs_err as fs;
use retort_model::score;

#[test]
fn kept_layers_are_those_of_a_model_without_the_others() {
    for folder in family() {
        let golden = Golden::of(&folder);
        let model = load(&folder).unwrap();
        let layers = 0..model.config().num_hidden_layers;
        // The first of two; of the ModernBERT, the two that are global.
        let kept: Vec<usize> = layers.filter(|layer| layer % 3 == 0).collect();
        let by_hand = copy_with(&folder, |tensors| {
            *tensors = std::mem::take(tensors)
                .into_iter()
                .filter_map(|(name, tensor)| Some((renumbered(&name, &kept)?, tensor)))
                .collect();
        });
        let model = model.keep_layers(&kept).unwrap();
        assert_eq!(model.config().num_hidden_layers, kept.len());
        let config = model.config().to_serving_json().to_string();
        fs::write(by_hand.path().join("config.json"), config).unwrap();
        let by_hand = load(by_hand.path()).unwrap();
        assert_eq!(by_hand.config(), model.config());
        let logits = score(&model, &golden.encoded(), 1000).unwrap();
        assert_eq!(score(&by_hand, &golden.encoded(), 1000).unwrap(), logits);
        assert!(largest_difference(&logits, &golden.logits) > 1e-3);
    }
}

#[test]
fn layers_that_are_not_there_or_out_of_order_are_refused() {
    for (name, kept, message) in [
        ("bert", &[][..], "name some of those it has"),
        (
            "bert",
            &[0, 2],
            "the layers [0, 2] of a model that has 2 cannot be kept",
        ),
        ("bert", &[1, 0], "the lowest first"),
        ("bert", &[0, 0], "name each once"),
        ("family/modernbert", &[1, 2], "keep the first layer"),
    ] {
        let model = load(&folder_of(name)).unwrap();
        let error = model.keep_layers(kept).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// The name that a tensor has where only `kept` layers are left; none if it goes.
fn renumbered(name: &str, kept: &[usize]) -> Option<String> {
    let mut parts: Vec<String> = name.split('.').map(str::to_owned).collect();
    for part in &mut parts {
        if let Ok(layer) = part.parse::<usize>() {
            *part = kept.iter().position(|kept| *kept == layer)?.to_string();
        }
    }
    Some(parts.join("."))
}
