//! Parameters by their Hugging Face names: walking them, reading them, writing them.
//!
//! The names are those of the architecture's [`Names`]; a linear weight is `[in, out]` here and
//! `[out, in]` there.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData, bf16, f16};
use fs_err as fs;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::architecture::Names;
use crate::config::ModelConfig;
use crate::cross_encoder::{Classifier, CrossEncoder};
use crate::error::{Error, Result};

/// Where the layers on top of the encoder come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The folder holds a whole cross-encoder: its classifier has one label.
    Required,
    /// The folder holds a base model. The classifier is drawn anew from the normal distribution
    /// of standard deviation `initializer_range`, as is what lies between encoder and classifier
    /// if the folder has none; biases are zero, a norm's weights one. Classifiers and heads of
    /// pre-training are passed over.
    New {
        /// Of the draw; the same on every device.
        seed: u64,
    },
}

/// Something done with every parameter.
pub trait ParameterVisitor {
    /// Called once per parameter, always in the same order, with its Hugging Face name.
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>);
}

/// A replacement for every parameter.
pub trait ParameterMapper {
    /// Called once per parameter, in the order of [`ParameterVisitor::visit`], with its Hugging
    /// Face name. Give back `parameter` itself to leave it as it is.
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>>;
}

/// Whether a parameter is stored transposed: Hugging Face keeps linear weights as `[out, in]`,
/// here they are `[in, out]`.
pub fn is_transposed(name: &str) -> bool {
    let is_norm = name.ends_with("Norm.weight") || name.ends_with("norm.weight");
    name.ends_with(".weight") && !name.contains("embeddings.") && !is_norm
}

impl CrossEncoder {
    /// Reads `config.json` and `model.safetensors` in `folder`.
    ///
    /// Names may come with the prefix of a whole model (`bert.`) or without, and with `gamma` and
    /// `beta` for a layer norm's weight and bias. Numbers of 16 bits become numbers of 32. `dropout`
    /// replaces all probabilities of `config.json`. Load onto an autodiff device to train.
    ///
    /// # Errors
    /// What [`ModelConfig::read`] refuses; a dropout outside of [0, 1); a missing, unexpected,
    /// misshapen or non-finite tensor, by name; weights that are pickled or in several files, with
    /// what to do about it.
    pub fn load(folder: &Path, head: Head, dropout: Option<f64>, device: &Device) -> Result<Self> {
        let mut config = match head {
            Head::Required => ModelConfig::read_reranker(folder)?,
            Head::New { .. } => ModelConfig {
                labels: vec!["LABEL_0".to_owned()],
                ..ModelConfig::read(folder)?
            },
        };
        if let Some(probability) = dropout {
            if !(0.0..1.0).contains(&probability) {
                return Err(Error::Dropout(probability));
            }
            config.hidden_dropout_prob = probability;
            config.attention_probs_dropout_prob = probability;
            config.classifier_dropout = None;
        }
        Self::skeleton(&config, device).fill(&weights_file(folder)?, head)
    }

    /// Replaces every parameter by the one in a file that [`CrossEncoder::save`] wrote. Parameters
    /// keep their device and whether they are trained.
    ///
    /// # Errors
    /// Those of [`CrossEncoder::load`] that concern weights.
    pub fn load_weights(self, path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::MissingFile {
                path: path.to_owned(),
            });
        }
        self.fill(path, Head::Required)
    }

    /// Writes all parameters as 32-bit safetensors under their Hugging Face names. The same
    /// parameters give the same bytes; the file appears whole or not at all.
    ///
    /// # Errors
    /// A parameter that is not finite (nothing is written), a device that fails, or an I/O error.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut collect = Collect {
            path,
            tensors: BTreeMap::new(),
            error: None,
        };
        self.visit_parameters(&mut collect);
        if let Some(error) = collect.error {
            return Err(error);
        }
        let broken = |source| Error::Safetensors {
            path: path.to_owned(),
            source,
        };
        let mut views = Vec::with_capacity(collect.tensors.len());
        for (name, (shape, bytes)) in &collect.tensors {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(broken)?;
            views.push((name, view));
        }
        // Readers of a certain age refuse a file that doesn't say which framework's layout it has.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
        Ok(retort_files::write_atomic(path, &bytes)?)
    }

    /// Shows every parameter to `visitor`.
    pub fn visit_parameters(&self, visitor: &mut impl ParameterVisitor) {
        self.visit(&mut Named {
            names: self.config().architecture.names(),
            path: Vec::new(),
            inner: visitor,
        });
    }

    /// Puts what `mapper` gives in the place of every parameter.
    #[must_use]
    pub fn map_parameters(self, mapper: &mut impl ParameterMapper) -> Self {
        let names = self.config().architecture.names();
        self.map(&mut Named {
            names,
            path: Vec::new(),
            inner: mapper,
        })
    }

    /// The same parameters as leaves of a graph of their own, so that a backward pass through this
    /// model and one through the original can run side by side.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone().map_parameters(&mut Fork)
    }

    fn fill(self, path: &Path, head: Head) -> Result<Self> {
        let bytes = fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|source| Error::Safetensors {
            path: path.to_owned(),
            source,
        })?;
        // Sorted, because the reader lists tensors in another order every time.
        let stored: BTreeMap<_, _> = file.iter().collect();
        let names = self.config().architecture.names();
        let mut tensors = BTreeMap::new();
        for (name, view) in stored {
            let canonical = names.canonical(name);
            let mut others = names.other_heads.iter();
            let replaced = matches!(head, Head::New { .. })
                && others.any(|begin| canonical.starts_with(begin));
            // A buffer of 0, 1, 2 … that older releases of transformers stored.
            if replaced || canonical == "embeddings.position_ids" {
                continue;
            }
            if tensors.insert(canonical, (name, view)).is_some() {
                return Err(Error::DuplicateTensor {
                    path: path.to_owned(),
                    name: name.to_owned(),
                });
            }
        }
        let mut filling = Fill {
            path,
            names,
            draw: match head {
                Head::Required => None,
                Head::New { seed } => Some(Draw {
                    random: ChaCha8Rng::seed_from_u64(seed),
                    deviation: self.config().initializer_range,
                    modules: absent(names, &tensors),
                }),
            },
            tensors,
            error: None,
        };
        let model = self.map_parameters(&mut filling);
        if let Some(error) = filling.error {
            return Err(error);
        }
        if !filling.tensors.is_empty() {
            let names = filling
                .tensors
                .into_values()
                .map(|(name, _)| name.to_owned())
                .collect();
            return Err(Error::ExtraTensors {
                path: path.to_owned(),
                names,
            });
        }
        Ok(model)
    }
}

impl Classifier {
    /// Reads a folder as [`CrossEncoder::load`] does, with the classes that `config.json` names.
    ///
    /// # Errors
    /// Those of [`CrossEncoder::load`], but for the number of labels.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let config = ModelConfig::read(folder)?;
        let model = CrossEncoder::skeleton(&config, device);
        Ok(Self(model.fill(&weights_file(folder)?, Head::Required)?))
    }
}

/// Keeps the Hugging Face name of the parameter that a walk through the model has come to.
struct Named<'a, W> {
    names: &'static Names,
    path: Vec<String>,
    inner: &'a mut W,
}

impl<W> Named<'_, W> {
    fn name(&self) -> String {
        self.names.of(&self.path)
    }

    fn enter(&mut self, field: &str, container: &str) {
        if !is_variant(container) {
            self.path.push(field.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !is_variant(container) {
            self.path.pop();
        }
    }
}

/// Which variant an enum is, the path does not say.
fn is_variant(container: &str) -> bool {
    container.starts_with("Enum:")
}

impl<W: ParameterVisitor> ModuleVisitor for Named<'_, W> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn visit_float<const N: usize>(&mut self, parameter: &Param<Tensor<N>>) {
        self.inner.visit(&self.name(), parameter);
    }
}

impl<W: ParameterMapper> ModuleMapper for Named<'_, W> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn map_float<const N: usize>(&mut self, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        let name = self.name();
        self.inner.map(&name, parameter)
    }
}

struct Fork;

impl ParameterMapper for Fork {
    fn map<const N: usize>(
        &mut self,
        _name: &str,
        parameter: Param<Tensor<N>>,
    ) -> Param<Tensor<N>> {
        let leaf = Tensor::from_inner(parameter.val().inner());
        let id = parameter.id;
        parameter.transform_for_load(leaf, id)
    }
}

/// Gathers what [`CrossEncoder::save`] writes; the map sorts by name.
struct Collect<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    error: Option<Error>,
}

impl ParameterVisitor for Collect<'_> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        if self.error.is_some() {
            return;
        }
        match self.collect(name, parameter) {
            Ok(tensor) => {
                self.tensors.insert(name.to_owned(), tensor);
            }
            Err(error) => self.error = Some(error),
        }
    }
}

impl Collect<'_> {
    fn collect<const N: usize>(
        &self,
        name: &str,
        parameter: &Param<Tensor<N>>,
    ) -> Result<(Vec<usize>, Vec<u8>)> {
        let shape = parameter.val().dims().to_vec();
        let values = parameter.val().try_into_vec_as::<f32>()?;
        refuse_non_finite(self.path, name, &values)?;
        let (shape, values) = if is_transposed(name) {
            (reversed(&shape), transposed(&values, &shape))
        } else {
            (shape, values)
        };
        Ok((
            shape,
            values.into_iter().flat_map(f32::to_le_bytes).collect(),
        ))
    }
}

/// Puts a file's tensors into the model, taking them out of `tensors`.
struct Fill<'a> {
    path: &'a Path,
    names: &'static Names,
    /// By name without the prefix: the name as stored, and the tensor.
    tensors: BTreeMap<String, (&'a str, TensorView<'a>)>,
    draw: Option<Draw>,
    error: Option<Error>,
}

impl ParameterMapper for Fill<'_> {
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        if self.error.is_some() {
            return parameter;
        }
        let shape = parameter.lazy_shape().to_vec();
        match self.values(name, &shape) {
            Ok(values) => {
                let device = parameter.lazy_device();
                let tensor = Tensor::from_data(TensorData::new(values, shape), &device);
                let id = parameter.id;
                parameter.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.error = Some(error);
                parameter
            }
        }
    }
}

impl Fill<'_> {
    fn hint_for_missing(&self, canonical: &str) -> &'static str {
        let of_head = |(_, there): &(&str, &str)| {
            let module = self.names.canonical(there);
            canonical.starts_with(&module)
        };
        if self.names.head.iter().any(of_head) {
            "this is a base model, not a trained reranker"
        } else {
            "the file is not of the model that config.json describes"
        }
    }

    fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let canonical = self.names.canonical(name);
        if let Some(draw) = &mut self.draw
            && draw.draws(&canonical)
        {
            return Ok(draw.values(name, shape));
        }
        let transpose = is_transposed(name);
        let expected = if transpose {
            reversed(shape)
        } else {
            shape.to_vec()
        };
        let path = || self.path.to_owned();
        let Some((name, view)) = self.tensors.remove(&canonical) else {
            return Err(Error::MissingTensor {
                path: path(),
                name: name.to_owned(),
                expected,
                hint: self.hint_for_missing(&canonical),
            });
        };
        if view.shape() != expected {
            let (name, got) = (name.to_owned(), view.shape().to_vec());
            return Err(Error::Shape {
                path: path(),
                name,
                expected,
                got,
            });
        }
        let Some(values) = floats(&view) else {
            let (name, got) = (name.to_owned(), format!("{:?}", view.dtype()));
            return Err(Error::Dtype {
                path: path(),
                name,
                got,
            });
        };
        refuse_non_finite(self.path, name, &values)?;
        Ok(if transpose {
            transposed(&values, &expected)
        } else {
            values
        })
    }
}

/// The modules of the head that are to be drawn: the classifier, and what the file has nothing of.
fn absent<T>(names: &Names, tensors: &BTreeMap<String, T>) -> Vec<String> {
    let module = |(_, there): &(&str, &str)| format!("{}.", names.canonical(there));
    let is_absent = |module: &String| !tensors.keys().any(|name| name.starts_with(module));
    names.head.iter().map(module).filter(is_absent).collect()
}

/// Draws the parameters that a base model lacks.
struct Draw {
    random: ChaCha8Rng,
    deviation: f64,
    /// What their names begin with, prefix left out.
    modules: Vec<String>,
}

impl Draw {
    fn draws(&self, canonical: &str) -> bool {
        self.modules
            .iter()
            .any(|module| canonical.starts_with(module))
    }

    fn values(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        if name.ends_with("bias") {
            return vec![0.0; count];
        }
        if shape.len() == 1 {
            return vec![1.0; count];
        }
        #[allow(clippy::cast_possible_truncation, reason = "weights have 32 bits")]
        (0..count)
            .map(|_| (self.normal() * self.deviation) as f32)
            .collect()
    }

    /// A draw from the standard normal distribution, by Box and Muller.
    fn normal(&mut self) -> f64 {
        // In (0, 1]: the logarithm of 0 is no number.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A draw from [0, 1), in steps of 2^-32.
    fn uniform(&mut self) -> f64 {
        f64::from(self.random.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}

/// `model.safetensors` in `folder`, or why it isn't there.
fn weights_file(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("model.safetensors");
    if path.exists() {
        return Ok(path);
    }
    if folder.join("model.safetensors.index.json").exists() {
        return Err(Error::ShardedWeights {
            folder: folder.to_owned(),
        });
    }
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        if file
            .extension()
            .is_some_and(|extension| extension == "bin" || extension == "pt")
            && let Some(file) = file.file_name()
        {
            let file = file.to_string_lossy().into_owned();
            return Err(Error::PickledWeights {
                folder: folder.to_owned(),
                file,
            });
        }
    }
    Err(Error::MissingFile { path })
}

fn refuse_non_finite(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NonFinite {
            path: path.to_owned(),
            name: name.to_owned(),
            index,
            value: values[index],
        }),
    }
}

/// A stored tensor as 32-bit numbers; `None` if they aren't floating-point of 16 or 32 bits.
fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let halves = || data.as_chunks::<2>().0.iter();
    match view.dtype() {
        Dtype::F32 => Some(
            data.as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
        ),
        Dtype::F16 => Some(
            halves()
                .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
                .collect(),
        ),
        Dtype::BF16 => Some(
            halves()
                .map(|bytes| bf16::from_le_bytes(*bytes).to_f32())
                .collect(),
        ),
        _ => None,
    }
}

fn reversed(shape: &[usize]) -> Vec<usize> {
    shape.iter().rev().copied().collect()
}

/// Rows become columns. A tensor of any rank but 2 comes back as it is.
fn transposed(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let &[rows, columns] = shape else {
        return values.to_vec();
    };
    (0..columns)
        .flat_map(|column| (0..rows).map(move |row| values[row * columns + column]))
        .collect()
}
