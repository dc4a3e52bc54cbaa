//! The loss, every gradient of it, and AdamW, of every architecture against what PyTorch computed
//! (`tests/golden/{bert,family}/make.py`); and all of it on a GPU. Fewer bits against 32.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::print_stdout, reason = "they say what they measured")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, panic, process, thread};

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use fs_err as fs;
use retort_model::{
    Attention, Batch, Bundle, CrossEncoder, DeviceChoice, Encoded, Head, ModelConfig,
    PairTokenizer, ParameterVisitor, Precision, Student, choose, configure, is_transposed, score,
};
use retort_trainer::loss::{self, Judged, Target};
use retort_trainer::{AdamW, LossSettings, NamedGradients, OptimizerSettings};
use safetensors::SafeTensors;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    #[serde(skip)]
    folder: PathBuf,
    #[serde(skip)]
    attention: Attention,
    /// How many times the tolerance of 32 bits what is computed may be off.
    #[serde(skip, default = "Golden::strictly")]
    slack: f32,
    queries: Vec<String>,
    documents: Vec<String>,
    logits: Vec<f32>,
    /// Of the logits, in the sum whose gradients are in `gradients_weighted.safetensors`.
    weights: Vec<f32>,
    groups: Vec<usize>,
    teacher_scores: Vec<f32>,
    bce_weight: f64,
    margin_mse: f32,
    bce: f32,
    loss: f32,
    gradient_norm: f64,
    adamw_losses: Vec<f32>,
    adamw_clipped_losses: Vec<f32>,
}

impl Golden {
    fn of(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden")
            .join(name);
        let file = fs::read(folder.join("golden.json")).unwrap();
        let golden: Self = serde_json::from_slice(&file).unwrap();
        Self { folder, ..golden }
    }

    fn strictly() -> f32 {
        1.0
    }

    /// Of every architecture.
    fn family() -> [Self; 6] {
        [
            "bert",
            "family/distilbert",
            "family/electra",
            "family/modernbert",
            "family/roberta",
            "family/xlm-roberta",
        ]
        .map(Self::of)
    }

    fn name(&self) -> String {
        self.folder.file_name().unwrap().display().to_string()
    }

    /// The same weights in that folder, as heads of 16, which tensor cores take.
    fn in_wide_heads(self, folder: &Path) -> Self {
        for file in fs::read_dir(&self.folder).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        let path = folder.join("config.json");
        let config = fs::read_to_string(&path).unwrap();
        let wide = config.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 2");
        assert_ne!(config, wide);
        fs::write(path, wide).unwrap();
        Self {
            folder: folder.to_owned(),
            ..self
        }
    }

    fn student(&self, device: &Device) -> CrossEncoder {
        let student = CrossEncoder::load(&self.folder, Head::Required, Some(0.0), device).unwrap();
        student.with_attention(self.attention).unwrap()
    }

    fn config(&self) -> ModelConfig {
        ModelConfig::read(&self.folder).unwrap()
    }

    fn encoded(&self) -> Vec<Encoded> {
        let pairs = self.queries.iter().zip(&self.documents);
        let pairs: Vec<(&str, &str)> = pairs.map(|(q, d)| (&**q, &**d)).collect();
        let tokenizer = PairTokenizer::open(&self.folder, 64).unwrap();
        tokenizer.encode_pairs(&pairs).unwrap()
    }

    fn batch(&self, device: &Device) -> Batch {
        let encoded = self.encoded();
        let inputs: Vec<&Encoded> = encoded.iter().collect();
        Batch::new(&inputs, &self.config(), device)
    }

    /// The same, the first pair in a batch of its own.
    fn in_two(&self, device: &Device) -> [Batch; 2] {
        let encoded = self.encoded();
        let inputs: Vec<&Encoded> = encoded.iter().collect();
        let (first, others) = inputs.split_at(1);
        let config = self.config();
        [first, others].map(|inputs| Batch::new(inputs, &config, device))
    }

    /// The same, in as many blocks as there are pairs.
    fn unpadded(&self, device: &Device) -> Batch {
        let encoded = self.encoded();
        let inputs: Vec<&Encoded> = encoded.iter().collect();
        Batch::unpadded(&inputs, &self.config(), device)
    }

    fn judged(&self) -> Judged {
        let target = |logit: &f32| Target {
            logit: *logit,
            grade: 0.0,
            doubt: 0.0,
        };
        let targets = self.teacher_scores.iter().map(target);
        Judged::step(self.groups.iter().copied().zip(targets))
    }

    fn loss(&self, scores: &Tensor<1>) -> Tensor<1> {
        let settings = LossSettings {
            margin_mse: 1.0,
            bce: self.bce_weight,
            ..LossSettings::none()
        };
        loss::weighted_sum(scores, &self.judged(), &settings)
    }

    /// The largest absolute error of a logit.
    fn error_of_logits(&self, logits: Tensor<1>) -> f32 {
        let logits = logits.try_into_vec_as::<f32>().unwrap();
        assert_eq!(logits.len(), self.logits.len());
        assert!(logits.iter().all(|logit| logit.is_finite()), "{logits:?}");
        let errors = logits.iter().zip(&self.logits).map(|(a, b)| (a - b).abs());
        errors.fold(0.0, f32::max)
    }

    /// The largest relative error of a gradient, which must stay below 1e-4.
    fn check_gradients(&self, model: &CrossEncoder, gradients: Vec<Bundle>, file: &str) -> f32 {
        let bytes = fs::read(self.folder.join(file)).unwrap();
        let mut compare = Compare {
            gradients: gradients.into_iter().flat_map(Bundle::apart).collect(),
            expected: SafeTensors::deserialize(&bytes).unwrap(),
            slack: self.slack,
            seen: 0,
            worst: 0.0,
        };
        model.visit_parameters(&mut compare);
        assert_eq!(compare.seen, compare.expected.len());
        compare.worst
    }

    /// The runs of ten steps, clipped and not; `backward` gives the loss and its gradients. The
    /// largest relative error of a loss and of the first gradient's norm, which must stay below
    /// 1e-4.
    fn check_ten_steps(
        &self,
        device: &Device,
        backward: impl Fn(&Student) -> (f32, NamedGradients),
    ) -> f64 {
        // So large a norm clips nothing.
        let runs = [(1e9, &self.adamw_losses), (1.0, &self.adamw_clipped_losses)];
        let mut worst = 0.0_f64;
        let mut check = |what: String, got: f64, expected: f64| {
            let error = (got - expected).abs() / expected.abs();
            let name = self.name();
            assert!(
                error < 1e-4 * f64::from(self.slack),
                "{name}, {what}: {got}, expected {expected}: off by {error:e}"
            );
            worst = worst.max(error);
        };
        for (max_grad_norm, expected) in runs {
            let mut student = Student::new(self.student(device)).unwrap();
            let settings = format!("learning_rate = 1e-3\nmax_grad_norm = {max_grad_norm:?}");
            let settings: OptimizerSettings = toml::from_str(&settings).unwrap();
            let mut optimizer = AdamW::new(&settings);
            assert_eq!(expected.len(), 11);
            for (step, expected) in expected.iter().enumerate() {
                let (loss, gradients) = backward(&student);
                check(format!("loss {step}"), loss.into(), (*expected).into());
                let norm;
                (student, norm) = optimizer.step(student, gradients, 1e-3).unwrap();
                if step == 0 {
                    check("gradient norm".to_owned(), norm, self.gradient_norm);
                }
            }
        }
        worst
    }

    /// The losses of 300 updates of a student with these layers, at a rate at which it learns the pairs
    /// almost by heart.
    fn losses(&self, layers: &[usize], device: &Device, precision: Precision) -> Vec<f64> {
        let student = self.student(device).keep_layers(layers).unwrap();
        let mut student = Student::new(student.with_precision(precision)).unwrap();
        let batch = self.batch(device);
        let settings: OptimizerSettings = toml::from_str("learning_rate = 1e-4").unwrap();
        let mut optimizer = AdamW::new(&settings);
        let mut scale = if precision.scales_loss() {
            65_536.0
        } else {
            1.0
        };
        let mut losses = Vec::new();
        while losses.len() < STEPS {
            let pass = student.pass(&batch);
            let loss = self.loss(&pass.logits);
            let gradients = loss.clone().mul_scalar(scale).backward();
            let gradients = NamedGradients::of(&student, vec![pass], &gradients).scaled_by(scale);
            let norm;
            (student, norm) = optimizer.step(student, gradients, 1e-4).unwrap();
            if norm.is_finite() {
                losses.push(value(loss).into());
            } else {
                scale /= 2.0;
                assert!(scale >= 1.0, "gradients overflow at any scale");
            }
        }
        losses
    }

    /// That losses in all precisions of a device, in the mean over each 20 steps, are within 2 % of
    /// those in 32 bits. Gives back the precisions, and the losses in 32 bits.
    fn check_precisions(&self, layers: &[usize], device: &Device) -> (Vec<Precision>, Vec<f64>) {
        let precisions = Precision::of(device);
        let Some((Precision::F32, others)) = precisions.split_first() else {
            panic!("no 32 bits: {precisions:?}");
        };
        let training = device.clone().autodiff();
        let of_all = self.losses(layers, &training, Precision::F32);
        assert!(of_all[STEPS - 1] < 0.2 * of_all[0], "nothing was learnt");
        // Which of the two 32-bit products stand for is one choice for all of a process.
        let others = others.iter().filter(|one| **one != Precision::Tf32);
        for precision in others {
            let losses = self.losses(layers, &training, *precision);
            let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
            let mut worst = 0.0_f64;
            for (few, all) in losses.windows(20).zip(of_all.windows(20)) {
                worst = worst.max((mean(few) / mean(all) - 1.0).abs());
            }
            println!("{precision}: off by up to {worst:.1e}");
            // The order of sums alone makes some 1e-7.
            let band = 1e-5..0.02;
            assert!(band.contains(&worst), "{precision}: off by {worst:e}");
        }
        (precisions, of_all)
    }

    /// Logits in training and outside of it, gradients, and ten steps.
    fn check_all(&self, device: &Device) {
        let name = self.name();
        let trained = device.clone().autodiff();
        let scores = score(&self.student(device), &self.encoded(), 4096).unwrap();
        let scores = Tensor::from_floats(scores.as_slice(), &Device::flex());
        let (mut of_logits, mut of_gradients) = (self.error_of_logits(scores), 0.0_f32);
        let ways: [fn(&Self, &Device) -> Vec<Batch>; 3] = [
            |golden, device| vec![golden.batch(device)],
            |golden, device| vec![golden.unpadded(device)],
            |golden, device| golden.in_two(device).into(),
        ];
        // Where kernels take their time to compile, one architecture shows what blocks and passes do.
        let is_enough = *device != Device::flex() && name != "bert";
        for batches in &ways[..if is_enough { 1 } else { ways.len() }] {
            let student = self.student(device);
            let logits = batches(self, device);
            let logits = logits.iter().map(|batch| student.forward(batch)).collect();
            of_logits = of_logits.max(self.error_of_logits(Tensor::cat(logits, 0)));
            // As training does it, and by the graph that this stands for.
            for by_graph in [false, true]
                .into_iter()
                .take(if is_enough { 1 } else { 2 })
            {
                let model = self.student(&trained);
                let student = if by_graph {
                    Student::by_graph(model.clone())
                } else {
                    Student::new(model.clone()).unwrap()
                };
                let batches = batches(self, &trained);
                let passes: Vec<_> = batches.iter().map(|batch| student.pass(batch)).collect();
                let logits = passes.iter().map(|pass| pass.logits.clone()).collect();
                let logits: Tensor<1> = Tensor::cat(logits, 0);
                of_logits = of_logits.max(self.error_of_logits(logits.clone()));
                let gradients = if by_graph {
                    let weights = Tensor::<1>::from_floats(self.weights.as_slice(), &trained);
                    let gradients = (logits * weights).sum().backward();
                    student.gradients(passes, &gradients)
                } else {
                    // As the trainer has them.
                    student.gradients_at(passes, &self.weights)
                };
                let file = "gradients_weighted.safetensors";
                of_gradients = of_gradients.max(self.check_gradients(&model, gradients, file));
            }
        }
        assert!(
            of_logits < 1e-5 * self.slack,
            "{name}: off by {of_logits:e}"
        );
        let of_steps = self.check_ten_steps_as_trained(&trained);
        println!("{name}: logits {of_logits:e}, gradients {of_gradients:e}, steps {of_steps:e}");
    }

    /// Where tensors are computed with.
    fn check_ten_steps_as_trained(&self, device: &Device) -> f64 {
        let batch = self.batch(device);
        self.check_ten_steps(device, |student| {
            let pass = student.pass(&batch);
            let loss = self.loss(&pass.logits);
            let gradients = NamedGradients::of(student, vec![pass], &loss.backward());
            (value(loss), gradients)
        })
    }
}

/// Of a run that is compared.
const STEPS: usize = 300;

fn value(tensor: Tensor<1>) -> f32 {
    tensor.try_into_vec_as::<f32>().unwrap()[0]
}

fn assert_near(what: &str, got: f32, expected: f32, relative: f32) {
    let error = (got - expected).abs() / expected.abs();
    assert!(
        error < relative,
        "{what}: {got}, expected {expected}: off by {error:e}"
    );
}

#[test]
fn the_loss_and_its_parts_match_pytorch() {
    for golden in Golden::family() {
        let device = Device::flex();
        let scores = golden.student(&device).forward(&golden.batch(&device));
        let margins = loss::margin_mse(scores.clone(), &golden.judged());
        assert_near("margin-mse", value(margins), golden.margin_mse, 1e-5);
        let bce = loss::bce(scores.clone(), &golden.judged());
        assert_near("bce", value(bce), golden.bce, 1e-5);
        assert_near("loss", value(golden.loss(&scores)), golden.loss, 1e-5);
    }
}

#[test]
fn every_gradient_of_the_loss_matches_pytorch() {
    let golden = Golden::of("bert");
    let device = Device::flex().autodiff();
    let model = golden.student(&device);
    let student = Student::new(model.clone()).unwrap();
    let pass = student.pass(&golden.batch(&device));
    let gradients = golden.loss(&pass.logits).backward();
    let gradients = student.gradients(vec![pass], &gradients);
    let worst = golden.check_gradients(&model, gradients, "gradients_loss.safetensors");
    println!("largest relative error of a gradient: {worst:e}");
}

#[test]
fn logits_gradients_and_ten_steps_match_pytorch() {
    for golden in Golden::family() {
        golden.check_all(&Device::flex());
    }
}

/// What the CPU trains BERT with.
#[test]
fn ten_steps_with_the_passes_of_the_cpu_match_pytorch() {
    let golden = Golden::of("bert");
    let device = Device::flex().autodiff();
    let encoded = golden.encoded();
    let inputs: Vec<&Encoded> = encoded.iter().collect();
    let worst = golden.check_ten_steps(&device, |student| {
        let host = student.host().unwrap();
        let pass = host.forward(&inputs, 2, 30, 0);
        let scores = Tensor::<1>::from_floats(pass.logits.as_slice(), &device).require_grad();
        let loss = golden.loss(&scores);
        let slopes = scores.grad(&loss.backward()).unwrap();
        let gradients = host.backward(&pass, &slopes.try_into_vec_as::<f32>().unwrap());
        let gradients = NamedGradients::of_host(gradients, &Device::flex());
        (value(loss), gradients)
    });
    println!("largest relative error: {worst:e}");
}

/// The tolerances are the CPU's. In WGSL, 32 bits are not cut to fewer: what is left is the order
/// of sums, and division, exp and tanh that may be off by a few units in the last place. Measured on
/// software Vulkan: logits within 2.6e-6, gradients within 4.1e-6, losses within 5.3e-6.
///
/// One test for all, because shaders are compiled for each process anew, which in software is most of
/// what this takes: some three minutes of one core; six tests take eight.
#[test]
fn logits_gradients_and_ten_steps_match_pytorch_on_a_gpu() {
    let Some(device) = gpu() else { return };
    for golden in Golden::family() {
        golden.check_all(&device);
    }
    for by_name in [false, true] {
        check_learning_rates(&device, by_name);
    }
    check_overflow(&device);
}

/// BERT's padding and ModernBERT's local layers in Burn's fused kernels, with the same tolerances.
#[test]
fn fused_attention_matches_pytorch_on_a_gpu() {
    let Some(device) = gpu() else { return };
    // CUDA's may cut 32 bits to TF32, whatever products are to be.
    let slack = if Precision::Tf32.check(&device).is_ok() {
        100.0
    } else {
        1.0
    };
    for name in ["bert", "family/modernbert"] {
        let golden = Golden {
            attention: Attention::Fused,
            slack,
            ..Golden::of(name)
        };
        golden.check_all(&device);
    }
    let bert = Golden::of("bert").folder;
    let dropped = CrossEncoder::load(&bert, Head::Required, Some(0.1), &device).unwrap();
    let error = dropped.with_attention(Attention::Fused).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("set model.dropout = 0.0"), "{error}");
}

#[test]
fn three_hundred_steps_with_fewer_bits_are_near_those_with_32() {
    let golden = Golden::of("bert");
    golden.check_precisions(&[1], &Device::flex());
    let (precisions, _) = golden.check_precisions(&[0, 1], &Device::flex());
    assert_eq!(
        precisions,
        [Precision::F32, Precision::Bf16, Precision::F16]
    );
}

/// One layer: in software each kernel takes its time, whatever the size.
#[test]
fn three_hundred_steps_are_near_those_of_the_cpu_and_of_fewer_bits_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::of("bert").in_wide_heads(folder.path());
    let (precisions, there) = golden.check_precisions(&[1], &device);
    println!("{precisions:?}");
    let here = golden.losses(&[1], &Device::flex().autodiff(), Precision::F32);
    let differences = there.iter().zip(&here).map(|(a, b)| (a / b - 1.0).abs());
    let worst = differences.fold(0.0, f64::max);
    println!("{STEPS} losses within {worst:.1e} of the CPU's");
    assert!(worst < 1e-3, "off by {worst:e}");
    if let Err(error) = Precision::Bf16.check(&device) {
        // WGSL has f16 where the adapter has it, and never bf16.
        let error = error.to_string();
        assert!(
            error.contains("CUDA and, slowly, the CPU have it"),
            "{error}"
        );
    }
}

/// What `RETORT_TEST_GPU` names, wgpu's unless given; none where there is none and none is required.
fn gpu() -> Option<Device> {
    configure(None, Precision::F32);
    let choice = env::var("RETORT_TEST_GPU").map_or(DeviceChoice::Wgpu, |it| it.parse().unwrap());
    match choose(choice) {
        Ok((device, why)) => {
            println!("on {why}");
            die_with_any_thread();
            Some(device)
        }
        Err(error) => {
            assert!(env::var_os("RETORT_REQUIRE_GPU").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// The thread of wgpu's that dies now and then (`.config/nextest.toml`) would leave the test waiting.
fn die_with_any_thread() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        // A test's own has its name.
        if thread::current().name().is_none() {
            process::abort();
        }
    }));
}

#[test]
fn each_group_of_parameters_has_its_learning_rate() {
    for by_name in [false, true] {
        check_learning_rates(&Device::flex(), by_name);
    }
}

#[test]
fn a_gradient_that_overflows_moves_nothing() {
    check_overflow(&Device::flex());
}

/// A GPU finds out by itself that a gradient is not finite, and moves nothing, as the CPU does.
fn check_overflow(device: &Device) {
    let golden = Golden::of("bert");
    let device = device.clone().autodiff();
    let gradients = |student: &Student, size: f32| {
        let pass = student.pass(&golden.batch(&device));
        let gradients = pass.logits.clone().mul_scalar(size).sum().backward();
        NamedGradients::of(student, vec![pass], &gradients)
    };
    let values = |student: &Student| {
        let mut values = Values(Vec::new());
        student.model().unwrap().visit_parameters(&mut values);
        values.0
    };
    let settings = "learning_rate = 1e-3\nepsilon = 0.01";
    let adamw = || AdamW::new(&toml::from_str(settings).unwrap());
    let student = Student::new(golden.student(&device)).unwrap();
    let before = values(&student);
    let mut optimizer = adamw();
    let too_large = gradients(&student, 3e38);
    let (student, norm) = optimizer.step(student, too_large, 1e-3).unwrap();
    assert!(!norm.is_finite(), "{norm}");
    assert!(values(&student) == before);
    // It goes on as one that has made no step.
    let step = |mut optimizer: AdamW, student: Student| {
        let gradients = gradients(&student, 1.0);
        let (student, norm) = optimizer.step(student, gradients, 1e-3).unwrap();
        assert!(norm > 1.0 && norm.is_finite(), "{norm}");
        values(&student)
    };
    let after = step(optimizer, student);
    let of_new = step(adamw(), Student::new(golden.student(&device)).unwrap());
    let largest = |one: &[(String, Vec<f32>)], other: &[(String, Vec<f32>)]| {
        let both = one.iter().zip(other);
        let both = both.flat_map(|((_, one), (_, other))| one.iter().zip(other));
        both.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let (moved, off) = (largest(&after, &before), largest(&after, &of_new));
    assert!(moved > 1e-4 && off < 1e-6, "{moved} {off}");
}

/// Adam's first step is the learning rate itself, whatever the gradient, as the student has it or `by_name`.
fn check_learning_rates(device: &Device, by_name: bool) {
    let golden = Golden::of("bert");
    let plain = device;
    let device = device.clone().autodiff();
    let before = golden.student(&device);
    let student = Student::new(before.clone()).unwrap();
    let pass = student.pass(&golden.batch(&device));
    let gradients = golden.loss(&pass.logits).backward();
    let gradients = if by_name {
        let gradients = student.gradients(vec![pass], &gradients).into_iter();
        let values = |(name, its): (String, Tensor<1>)| (name, its.try_into_vec_as().unwrap());
        let gradients = gradients.flat_map(Bundle::apart).map(values);
        NamedGradients::of_host(gradients.collect(), plain)
    } else {
        NamedGradients::of(&student, vec![pass], &gradients)
    };
    let settings = "learning_rate = 1e-3\nweight_decay = 0.0\nmax_grad_norm = 1e9
                    layer_decay = 0.5\nhead_factor = 3.0";
    let mut optimizer = AdamW::new(&toml::from_str(settings).unwrap());
    let (after, _) = optimizer.step(student, gradients, 1e-3).unwrap();
    let mut values = Values(Vec::new());
    before.visit_parameters(&mut values);
    let before = std::mem::take(&mut values.0);
    after.model().unwrap().visit_parameters(&mut values);
    for (name, expected) in [
        ("bert.embeddings.word_embeddings.weight", 0.25e-3),
        ("bert.embeddings.LayerNorm.bias", 0.25e-3),
        ("bert.encoder.layer.0.output.dense.weight", 0.5e-3),
        ("bert.encoder.layer.1.attention.self.value.bias", 1e-3),
        ("bert.pooler.dense.weight", 3e-3),
        ("classifier.weight", 3e-3),
    ] {
        let of = |all: &[(String, Vec<f32>)]| {
            let (_, values) = all.iter().find(|(one, _)| one == name).unwrap();
            values.clone()
        };
        let (before, after) = (of(&before), of(&values.0));
        let moved = before.iter().zip(after).map(|(a, b)| (a - b).abs());
        let largest = moved.fold(0.0, f32::max);
        assert_near(name, largest, expected, 1e-2);
    }
}

/// All values of each parameter.
struct Values(Vec<(String, Vec<f32>)>);

impl ParameterVisitor for Values {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        let values = parameter.val().try_into_vec_as().unwrap();
        self.0.push((name.to_owned(), values));
    }
}

struct Compare<'a> {
    gradients: BTreeMap<String, Tensor<1>>,
    expected: SafeTensors<'a>,
    slack: f32,
    seen: usize,
    worst: f32,
}

impl ParameterVisitor for Compare<'_> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        self.seen += 1;
        let gradient = self.gradients.remove(name).unwrap();
        let gradient: Tensor<N> = gradient.reshape(parameter.shape());
        let gradient = if is_transposed(name) {
            gradient.swap_dims(0, 1)
        } else {
            gradient
        };
        let expected = self.expected.tensor(name).unwrap();
        assert_eq!(gradient.dims().as_slice(), expected.shape(), "{name}");
        let got: Vec<f32> = gradient.try_into_vec_as().unwrap();
        let expected = expected
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four));
        if name.ends_with("key.bias") || name.ends_with("k_lin.bias") {
            // Moves all scores of a row alike, which softmax does not see: 0 but for rounding.
            let most = 1e-5 * self.slack;
            assert!(got.iter().all(|value| value.abs() < most), "{name}");
            return;
        }
        let (mut difference, mut length) = (0.0, 0.0);
        for (got, expected) in got.iter().zip(expected) {
            difference += (got - expected).powi(2);
            length += expected.powi(2);
        }
        let error: f32 = (difference / length).sqrt();
        assert!(error < 1e-4 * self.slack, "{name}: off by {error:e}");
        self.worst = self.worst.max(error);
    }
}
