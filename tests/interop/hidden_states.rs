//! What a base model makes of texts, for `hidden_states.py` to compare with PyTorch.
//!
//! `hidden_states MODEL OUT`, with a text in JSON on each line of standard input. MODEL is a folder
//! or a name on the Hub; OUT becomes a model folder (`config.json`, `model.safetensors`) of MODEL
//! with a new head, with `outputs.safetensors` beside: the last hidden state of the text on line N
//! under `N`, the logit of each text under `logits`, and MODEL's folder as metadata.

use std::collections::HashMap;
use std::env;
use std::io;
use std::path::Path;

use anyhow::Context;
use fs_err as fs;
use retort_model::{
    Batch, CrossEncoder, Device, Encoded, Head, PairTokenizer, length_buckets, score,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const MAX_TOKENS: usize = 512;
/// Few, so that texts of many lengths are padded beside each other and in many batches.
const TOKENS_PER_BATCH: usize = 4096;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, out] = arguments.as_slice() else {
        anyhow::bail!("usage: hidden_states MODEL OUT");
    };
    let base = retort_hub::base_model(model, None, None)?;
    let texts: Vec<String> = io::stdin()
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<anyhow::Result<_>>()?;

    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let encoded = PairTokenizer::open(&base.folder, MAX_TOKENS)?.encode_texts(&texts)?;
    let device = Device::flex();
    let model = CrossEncoder::load(&base.folder, Head::New { seed: 1 }, None, &device)?;
    let mut tensors = hidden_states(&model, &encoded)?;
    let logits = score(&model, &encoded, TOKENS_PER_BATCH)?;
    tensors.push(("logits".to_owned(), vec![logits.len()], logits));

    let out = Path::new(out);
    fs::create_dir_all(out)?;
    let config = model.config().to_serving_json().to_string();
    fs::write(out.join("config.json"), config)?;
    model.save(&out.join("model.safetensors"))?;
    let folder = base.folder.to_str().context("a folder with an odd name")?;
    let metadata = HashMap::from([("folder".to_owned(), folder.to_owned())]);
    write(&out.join("outputs.safetensors"), &tensors, metadata)
}

type Named = (String, Vec<usize>, Vec<f32>);

/// Those of real tokens, `[T, D]` for each input.
fn hidden_states(model: &CrossEncoder, encoded: &[Encoded]) -> anyhow::Result<Vec<Named>> {
    let lengths: Vec<usize> = encoded.iter().map(Encoded::len).collect();
    let mut named = Vec::new();
    for bucket in length_buckets(&lengths, TOKENS_PER_BATCH) {
        let inputs: Vec<&Encoded> = bucket.iter().map(|place| &encoded[*place]).collect();
        let batch = Batch::new(&inputs, model.config(), &model.device());
        let hidden = model.last_hidden_state(&batch);
        let [rows, width] = hidden.dims();
        let longest = rows / inputs.len();
        for (row, place) in bucket.into_iter().enumerate() {
            let length = lengths[place];
            let of_input = hidden.clone().narrow(0, row * longest, length);
            let values = of_input.try_into_vec_as::<f32>()?;
            named.push((place.to_string(), vec![length, width], values));
        }
    }
    Ok(named)
}

fn write(path: &Path, tensors: &[Named], metadata: HashMap<String, String>) -> anyhow::Result<()> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().copied().flat_map(f32::to_le_bytes).collect())
        .collect();
    let mut views = Vec::new();
    for ((name, shape, _), bytes) in tensors.iter().zip(&bytes) {
        views.push((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    fs::write(path, safetensors::serialize(views, Some(metadata))?)?;
    Ok(())
}
