//! Cross-encoders of the BERT family in Burn: tokenised pairs, Hugging Face weights in and out.
//!
//! A folder in the Hugging Face layout (`config.json`, `model.safetensors`, `tokenizer.json`)
//! becomes a [`CrossEncoder`] and a [`PairTokenizer`]; [`score`] runs the one over what the other
//! made; [`CrossEncoder::save`] writes weights that every Hugging Face reader takes back.
//!
//! ```no_run
//! use retort_model::{CrossEncoder, DeviceChoice, Head, PairTokenizer, choose, score};
//!
//! # fn main() -> Result<(), retort_model::Error> {
//! let folder = std::path::Path::new("my-reranker");
//! let (device, why) = choose(DeviceChoice::Auto)?;
//! println!("running on {why}");
//! let model = CrossEncoder::load(folder, Head::Required, None, &device)?;
//! let tokenizer = PairTokenizer::open(folder, 256)?;
//! let pairs = tokenizer.encode_pairs(&[("red shoes", "Running shoes, red, size 7")])?;
//! let logits = score(&model, &pairs, 8192)?;
//! # Ok(())
//! # }
//! ```

mod architecture;
mod attention;
mod blocks;
mod bundle;
#[cfg(feature = "gpu")]
mod by_hand;
mod config;
mod config_file;
mod cross_encoder;
mod device;
mod draw;
mod encoder;
mod error;
mod gelu;
#[cfg(feature = "gpu")]
mod gpu;
mod guard;
mod head;
mod host;
mod kernels;
mod pairs;
mod parallel;
mod parameters;
mod post_norm;
mod pre_norm;
mod precision;
mod student;
mod trial;
mod update;
mod weight_files;
mod weights;

pub use architecture::Architecture;
pub use attention::Attention;
pub use bundle::{Bundle, Group, read};
/// Where tensors live and are computed; `autodiff()` of it for training.
pub use burn::tensor::Device;
pub use config::{ModelConfig, ModernBertConfig};
pub use cross_encoder::{Batch, Classifier, CrossEncoder};
pub use device::{DeviceChoice, choose, is_software, more};
pub use error::{Error, Result};
pub use guard::{answered, guard, unanswered};
pub use host::{HostBert, HostPass};
pub use kernels::configure;
pub use pairs::{Encoded, PairTokenizer, classify, embed_all, length_buckets, score};
pub use parallel::{parallel_map, parallelism};
pub use parameters::{ParameterMapper, ParameterVisitor, replace};
pub use precision::Precision;
pub use student::{Pass, Student};
pub use trial::{Trial, try_out};
pub use update::{Adam, Clip, Moments, Move, squares};
pub use weight_files::weight_files;
pub use weights::{Head, is_transposed};
