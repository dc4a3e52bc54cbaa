//! The architectures: for each a file with its `config.json` and its table of names.
//!
//! What they compute is in [`crate::encoder`] and [`crate::head`], because most of it they share.

mod bert;
mod distilbert;
mod electra;
mod modernbert;
mod roberta;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::config_file::ConfigFile;
use crate::error::Result;

/// A member of the BERT family, as `model_type` in `config.json` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// BERT (Devlin et al., 2019, arXiv 1810.04805).
    Bert,
    /// DistilBERT (Sanh et al., 2019, arXiv 1910.01108): no segments, no pooler.
    DistilBert,
    /// ELECTRA (Clark et al., 2020, arXiv 2003.10555): embeddings of a width of their own.
    Electra,
    /// ModernBERT (Warner et al., 2024, arXiv 2412.13663): rotary positions, local attention.
    ModernBert,
    /// RoBERTa (Liu et al., 2019, arXiv 1907.11692): positions count from the padding token.
    Roberta,
    /// XLM-RoBERTa (Conneau et al., 2020, arXiv 1911.02116): RoBERTa in many languages.
    XlmRoberta,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Bert,
        Self::DistilBert,
        Self::Electra,
        Self::ModernBert,
        Self::Roberta,
        Self::XlmRoberta,
    ];

    /// The one of that `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.model_type() == model_type)
    }

    /// What `config.json` calls it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::Electra => "electra",
            Self::ModernBert => "modernbert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    /// The class that transformers loads it with.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Bert => "BertForSequenceClassification",
            Self::DistilBert => "DistilBertForSequenceClassification",
            Self::Electra => "ElectraForSequenceClassification",
            Self::ModernBert => "ModernBertForSequenceClassification",
            Self::Roberta => "RobertaForSequenceClassification",
            Self::XlmRoberta => "XLMRobertaForSequenceClassification",
        }
    }

    pub(crate) fn read(self, file: &ConfigFile) -> Result<ModelConfig> {
        match self {
            Self::Bert => bert::read(file),
            Self::DistilBert => distilbert::read(file),
            Self::Electra => electra::read(file),
            Self::ModernBert => modernbert::read(file),
            Self::Roberta | Self::XlmRoberta => roberta::read(file, self),
        }
    }

    /// The keys of its own of a `config.json`.
    pub(crate) fn fields(self, config: &ModelConfig) -> Value {
        match self {
            Self::Bert | Self::Roberta | Self::XlmRoberta => bert::fields(config),
            Self::DistilBert => distilbert::fields(config),
            Self::Electra => electra::fields(config),
            Self::ModernBert => modernbert::fields(config),
        }
    }

    pub(crate) fn names(self) -> &'static Names {
        match self {
            Self::Bert => &bert::NAMES,
            Self::DistilBert => &distilbert::NAMES,
            Self::Electra => &electra::NAMES,
            Self::ModernBert => &modernbert::NAMES,
            Self::Roberta | Self::XlmRoberta => &roberta::NAMES,
        }
    }
}

/// Where an architecture's parameters are in Hugging Face's files. The one table for both
/// directions.
pub(crate) struct Names {
    /// What the encoder's names begin with; files of base models leave it out.
    pub(crate) prefix: &'static str,
    /// The encoder's modules: the path here, and the name there after the prefix. `*` is a layer's
    /// number.
    pub(crate) encoder: &'static [(&'static str, &'static str)],
    /// The head's modules, in the same way but with whole names.
    pub(crate) head: &'static [(&'static str, &'static str)],
    /// What the names of other tasks' heads begin with, prefix left out.
    pub(crate) other_heads: &'static [&'static str],
}

impl Names {
    /// The name there of a parameter here.
    pub(crate) fn of(&self, path: &[String]) -> String {
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let Some((leaf, module)) = path.split_last() else {
            return String::new();
        };
        let leaf = match &**leaf {
            "gamma" => "weight",
            "beta" => "bias",
            other => other,
        };
        let parts: Vec<&str> = module
            .iter()
            .map(|part| if is_number(part) { "*" } else { part.as_str() })
            .collect();
        let here = parts.join(".");
        let number = module.iter().find(|part| is_number(part));
        let there = |table: &[(&str, &str)]| {
            let (_, name) = table.iter().find(|(path, _)| *path == here)?;
            Some(name.replace('*', number.map_or("", String::as_str)))
        };
        match (there(self.encoder), there(self.head)) {
            (Some(name), _) => format!("{}{name}.{leaf}", self.prefix),
            (None, Some(name)) => format!("{name}.{leaf}"),
            // A module without a row in the table: no file has that name, which an error will say.
            (None, None) => path.join("."),
        }
    }

    /// How many of `layers` layers are above the parameter of that name there; `None` of the head's.
    pub(crate) fn layers_above(&self, name: &str, layers: usize) -> Option<usize> {
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        if self.head.iter().any(|(_, there)| *there == module) {
            return None;
        }
        if let Some(layer) = module
            .split('.')
            .find_map(|part| part.parse::<usize>().ok())
        {
            return Some(layers.saturating_sub(layer + 1));
        }
        let module = module.strip_prefix(self.prefix).unwrap_or(module);
        let mut encoder = self.encoder.iter();
        let is_above_all = encoder.any(|(here, there)| {
            // ModernBERT's last norm.
            *there == module && here.starts_with("encoder.stack.")
        });
        Some(if is_above_all { 0 } else { layers })
    }

    /// The one form of the names that a parameter may be stored under: no prefix, no `gamma`, no
    /// `beta`.
    pub(crate) fn canonical(&self, name: &str) -> String {
        let name = name.strip_prefix(self.prefix).unwrap_or(name);
        if let Some(layer) = name.strip_suffix("LayerNorm.gamma") {
            format!("{layer}LayerNorm.weight")
        } else if let Some(layer) = name.strip_suffix("LayerNorm.beta") {
            format!("{layer}LayerNorm.bias")
        } else {
            name.to_owned()
        }
    }
}

/// A default of transformers that all architectures share: of `initializer_range`.
fn fiftieth() -> f64 {
    0.02
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(architecture: Architecture, here: &str) -> String {
        let path: Vec<String> = here.split('.').map(str::to_owned).collect();
        architecture.names().of(&path)
    }

    #[test]
    fn names_are_those_of_hugging_face() {
        for (architecture, here, expected) in [
            (
                Architecture::Bert,
                "encoder.stack.layers.11.query.weight",
                "bert.encoder.layer.11.attention.self.query.weight",
            ),
            (
                Architecture::Bert,
                "encoder.norm.beta",
                "bert.embeddings.LayerNorm.bias",
            ),
            (
                Architecture::XlmRoberta,
                "head.classifier.bias",
                "classifier.out_proj.bias",
            ),
            (
                Architecture::DistilBert,
                "encoder.stack.layers.0.outer_norm.gamma",
                "distilbert.transformer.layer.0.output_layer_norm.weight",
            ),
            (
                Architecture::ModernBert,
                "encoder.stack.norm.gamma",
                "model.final_norm.weight",
            ),
        ] {
            assert_eq!(there(architecture, here), expected);
        }
    }

    #[test]
    fn depth_goes_by_names() {
        let above = |architecture: Architecture, name| architecture.names().layers_above(name, 6);
        for (architecture, name, expected) in [
            (
                Architecture::Bert,
                "bert.embeddings.word_embeddings.weight",
                Some(6),
            ),
            (
                Architecture::Bert,
                "bert.encoder.layer.0.output.dense.bias",
                Some(5),
            ),
            (
                Architecture::DistilBert,
                "distilbert.transformer.layer.5.ffn.lin1.weight",
                Some(0),
            ),
            (
                Architecture::Electra,
                "electra.embeddings_project.bias",
                Some(6),
            ),
            (Architecture::ModernBert, "model.final_norm.weight", Some(0)),
            (
                Architecture::ModernBert,
                "model.layers.4.mlp.Wo.weight",
                Some(1),
            ),
            (Architecture::ModernBert, "head.norm.weight", None),
            (Architecture::Bert, "bert.pooler.dense.weight", None),
            (Architecture::Roberta, "classifier.out_proj.bias", None),
        ] {
            assert_eq!(above(architecture, name), expected, "{name}");
        }
    }

    #[test]
    fn names_are_read_with_and_without_prefix_and_in_their_old_form() {
        let names = Architecture::Electra.names();
        for stored in [
            "electra.embeddings.LayerNorm.weight",
            "embeddings.LayerNorm.weight",
            "embeddings.LayerNorm.gamma",
        ] {
            assert_eq!(names.canonical(stored), "embeddings.LayerNorm.weight");
        }
    }
}
