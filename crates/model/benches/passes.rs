//! Forward passes, and passes forward and backward, over a grid of batch sizes and lengths, in every
//! precision and with every attention that a device has.
//!
//!   cargo bench -p retort-model --bench passes                            on the CPU
//!   cargo bench -p retort-model --features cuda --bench passes -- --device cuda --batch 32,128
//!
//! `--tf32` has CUDA cut 32-bit products to TF32, which is one choice for all of a process; without it
//! they are whole. `--device`, `--batch N,N…`, `--tokens N,N…` and `--passes N`, of which the median counts. The model
//! has the shape of MiniLM-L6 (six layers, 384 wide, 22.7 M parameters) and weights drawn by chance; all
//! inputs of a batch have one length, so nothing is padded. A pass forward is what `retort score` does
//! and has 32 bits; the other is that of a training step, without loss and optimiser.

#![allow(clippy::unwrap_used, reason = "a benchmark ends when something fails")]
#![allow(clippy::disallowed_methods, reason = "a panic names the line")]
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use retort_model::{
    Attention, CrossEncoder, DeviceChoice, Encoded, Head, Precision, Student, choose, configure,
    parallelism, score,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

const LAYERS: usize = 6;
const WIDTH: usize = 384;
const INNER: usize = 1536;
const WORDS: u32 = 30_522;
const POSITIONS: usize = 512;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str, default: &str| -> String {
        let place = arguments.iter().position(|argument| argument == flag);
        place.map_or(default.to_owned(), |place| arguments[place + 1].clone())
    };
    let numbers = |flag: &str, default: &str| -> Vec<usize> {
        let numbers = value(flag, default);
        numbers.split(',').map(|n| n.parse().unwrap()).collect()
    };
    let choice: DeviceChoice = value("--device", "cpu").parse().unwrap();
    let passes = numbers("--passes", "5")[0];
    let cut = arguments.iter().any(|argument| argument == "--tf32");
    // Which of the two 32-bit products stand for.
    let (whole_or_cut, other) = if cut {
        (Precision::Tf32, Precision::F32)
    } else {
        (Precision::F32, Precision::Tf32)
    };
    configure(None, whole_or_cut);
    let (device, which) = choose(choice).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let training = device.clone().autodiff();
    let load =
        |device| CrossEncoder::load(folder.path(), Head::Required, Some(0.0), device).unwrap();
    let model = load(&device);
    let mut ways = vec![];
    let precisions = Precision::of(&device).into_iter();
    for precision in precisions.filter(|precision| *precision != other) {
        for attention in Attention::of(&device) {
            let student = load(&training).with_precision(precision);
            let student = Student::new(student.with_attention(attention).unwrap()).unwrap();
            ways.push((format!("there and back, {precision}, {attention}"), student));
        }
    }
    println!("{which}; pairs a second, the median of {passes} passes\n");
    let names: Vec<&str> = ways.iter().map(|(name, _)| name.as_str()).collect();
    println!("| batch | tokens | forward | {} |", names.join(" | "));
    println!("|---|---|---|{}", "---|".repeat(ways.len()));
    for batch in numbers("--batch", "8,32") {
        for tokens in numbers("--tokens", "32,64,128,256") {
            let inputs = inputs(batch, tokens);
            let forward = rate(batch, passes, || {
                score(&model, &inputs, batch * tokens).unwrap();
            });
            let rates = ways.iter().map(|(_, student)| {
                let rate = rate(batch, passes, || {
                    there_and_back(student, &inputs, &training);
                });
                format!("{rate:.1}")
            });
            let rates: Vec<String> = rates.collect();
            println!(
                "| {batch} | {tokens} | {forward:.1} | {} |",
                rates.join(" | ")
            );
        }
    }
}

/// Pairs a second in the median, after a pass that compiles and tunes.
fn rate(batch: usize, passes: usize, mut pass: impl FnMut()) -> f64 {
    pass();
    let mut seconds: Vec<f64> = (0..passes)
        .map(|_| {
            let started = Instant::now();
            pass();
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    batch as f64 / seconds[passes / 2]
}

/// As the trainer makes them: by hand where there are such passes, else through Burn's graph.
fn there_and_back(student: &Student, inputs: &[Encoded], device: &Device) {
    let inputs: Vec<&Encoded> = inputs.iter().collect();
    if let Some(host) = student.host() {
        let tokens = inputs[0].len() * inputs.len();
        let pass = host.forward(&inputs, parallelism(device), tokens, 0);
        host.backward(&pass, &vec![1.0; inputs.len()]);
        return;
    }
    let batch = student.batch(&inputs);
    let pass = student.pass(&batch);
    let logits = pass.logits.clone();
    let gradients = logits.clone().sum().backward();
    let gradients = student.gradients(vec![pass], &gradients);
    // Reading a number waits for all that was asked before it.
    let of_logits: Tensor<1> = logits.inner();
    of_logits.try_into_vec_as::<f32>().unwrap();
    drop(gradients);
    device.sync().unwrap();
}

fn inputs(batch: usize, tokens: usize) -> Vec<Encoded> {
    let mut draw = ChaCha8Rng::seed_from_u64(tokens as u64);
    let mut input = || Encoded {
        input_ids: (0..tokens).map(|_| draw.next_u32() % WORDS).collect(),
        token_type_ids: (0..tokens)
            .map(|place| u32::from(place > tokens / 4))
            .collect(),
    };
    (0..batch).map(|_| input()).collect()
}

/// A BERT in Hugging Face's layout.
fn write_model(folder: &Path) {
    let config = json!({
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 12,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "id2label": {"0": "relevance"},
        "pad_token_id": 0,
    });
    fs_err::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes = Vec::new();
    let mut linear = |name: String, from: usize, to: usize| {
        shapes.push((format!("{name}.weight"), vec![to, from]));
        shapes.push((format!("{name}.bias"), vec![to]));
    };
    linear("bert.pooler.dense".to_owned(), WIDTH, WIDTH);
    linear("classifier".to_owned(), WIDTH, 1);
    let mut norms = vec!["bert.embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let of = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            linear(of(&format!("attention.{part}")), WIDTH, WIDTH);
        }
        linear(of("intermediate.dense"), WIDTH, INNER);
        linear(of("output.dense"), INNER, WIDTH);
        norms.extend([of("attention.output.LayerNorm"), of("output.LayerNorm")]);
    }
    for name in norms {
        shapes.push((format!("{name}.weight"), vec![WIDTH]));
        shapes.push((format!("{name}.bias"), vec![WIDTH]));
    }
    for (table, rows) in [
        ("word", WORDS as usize),
        ("position", POSITIONS),
        ("token_type", 2),
    ] {
        let name = format!("bert.embeddings.{table}_embeddings.weight");
        shapes.push((name, vec![rows, WIDTH]));
    }
    let mut draw = ChaCha8Rng::seed_from_u64(1);
    let values: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape)| {
            let bytes = (0..shape.iter().product()).flat_map(|_| {
                let even = draw.next_u32() as f32 / u32::MAX as f32 - 0.5;
                (even * 0.07).to_le_bytes()
            });
            bytes.collect()
        })
        .collect();
    let tensors = shapes.iter().zip(&values).map(|((name, shape), bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
}
