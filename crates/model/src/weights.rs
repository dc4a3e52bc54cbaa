//! Weights in and out, under their Hugging Face names.
//!
//! The names are those of the architecture's [`Names`]; a linear weight is `[in, out]` here and
//! `[out, in]` there.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::architecture::Names;
use crate::config::ModelConfig;
use crate::cross_encoder::{Classifier, CrossEncoder};
use crate::draw::Draw;
use crate::error::{Error, Result};
use crate::parameters::{ParameterMapper, ParameterVisitor, filled};
use crate::weight_files::{StoredTensor, stored_tensors, weights_path};

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

/// Whether a parameter is stored transposed: Hugging Face keeps linear weights as `[out, in]`,
/// here they are `[in, out]`.
pub fn is_transposed(name: &str) -> bool {
    let is_norm = name.ends_with("Norm.weight") || name.ends_with("norm.weight");
    name.ends_with(".weight") && !name.contains("embeddings.") && !is_norm
}

impl CrossEncoder {
    /// Reads `config.json` and `model.safetensors`, or the files that its index names, in `folder`.
    ///
    /// Names may come with the prefix of a whole model (`bert.`) or without, and with `gamma` and
    /// `beta` for a layer norm's weight and bias. Numbers of 16 bits become numbers of 32. `dropout`
    /// replaces all probabilities of `config.json`. Load onto an autodiff device to train.
    ///
    /// # Errors
    /// What [`ModelConfig::read`] refuses; a dropout outside of [0, 1); a missing, unexpected,
    /// misshapen or non-finite tensor, by name; a weight file that is damaged; weights that are
    /// pickled, with what to do about it.
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
        Self::skeleton(&config, device).fill(&weights_path(folder)?, head)
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

    fn fill(self, path: &Path, head: Head) -> Result<Self> {
        let names = self.config().architecture.names();
        let mut tensors = BTreeMap::new();
        for (name, tensor) in stored_tensors(path)? {
            let canonical = names.canonical(&name);
            let mut others = names.other_heads.iter();
            let replaced = matches!(head, Head::New { .. })
                && others.any(|begin| canonical.starts_with(begin));
            // A buffer of 0, 1, 2 … that older releases of transformers stored.
            if replaced || canonical == "embeddings.position_ids" {
                continue;
            }
            if tensors.contains_key(&canonical) {
                return Err(Error::DuplicateTensor {
                    path: tensor.path().to_owned(),
                    name,
                });
            }
            tensors.insert(canonical, (name, tensor));
        }
        let mut filling = Fill {
            path,
            names,
            draw: match head {
                Head::Required => None,
                Head::New { seed } => Some((
                    absent(names, &tensors),
                    Draw::new(seed, self.config().initializer_range),
                )),
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
                .map(|(name, _)| name)
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
        Ok(Self(model.fill(&weights_path(folder)?, Head::Required)?))
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
    tensors: BTreeMap<String, (String, StoredTensor)>,
    /// What the names begin with of what the file lacks, and where it comes from.
    draw: Option<(Vec<String>, Draw)>,
    error: Option<Error>,
}

impl ParameterMapper for Fill<'_> {
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        if self.error.is_some() {
            return parameter;
        }
        let shape = parameter.lazy_shape().to_vec();
        match self.values(name, &shape) {
            Ok(values) => filled(parameter, values),
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
        if let Some((modules, draw)) = &mut self.draw
            && modules.iter().any(|module| canonical.starts_with(module))
        {
            return Ok(draw.values(name, shape));
        }
        let transpose = is_transposed(name);
        let expected = if transpose {
            reversed(shape)
        } else {
            shape.to_vec()
        };
        let Some((name, tensor)) = self.tensors.remove(&canonical) else {
            return Err(Error::MissingTensor {
                path: self.path.to_owned(),
                name: name.to_owned(),
                expected,
                hint: self.hint_for_missing(&canonical),
            });
        };
        let path = tensor.path().to_owned();
        if tensor.shape != expected {
            return Err(Error::Shape {
                path,
                name,
                expected,
                got: tensor.shape,
            });
        }
        let Some(values) = tensor.read()? else {
            let got = tensor.dtype.to_string();
            return Err(Error::Dtype { path, name, got });
        };
        refuse_non_finite(&path, &name, &values)?;
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
