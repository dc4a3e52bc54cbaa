//! The shop as a collection on disk.

use std::fmt::Write;
use std::path::Path;

use fs_err as fs;
use serde_json::json;

use super::{Shop, Split};
use crate::{Result, jsonl};

impl Shop {
    /// Writes the shop in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`.
    ///
    /// # Errors
    /// When `folder` exists already, or an I/O error; nothing is left half-written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        retort_files::write_new_directory(folder, |folder| {
            let corpus = self.products.iter().map(|product| {
                json!({
                    "_id": product.id,
                    "title": product.title,
                    "text": product.text(),
                    "metadata": {
                        "brand": product.brand,
                        "type": product.product_type,
                        "attributes": product.attributes,
                    },
                })
            });
            fs::write(folder.join("corpus.jsonl"), jsonl::to_bytes(corpus)?)?;
            let queries = self.queries.iter().map(|query| {
                json!({
                    "_id": query.id,
                    "text": query.text,
                    "metadata": {"kind": query.kind, "type": query.product_type},
                })
            });
            fs::write(folder.join("queries.jsonl"), jsonl::to_bytes(queries)?)?;
            fs::create_dir(folder.join("qrels"))?;
            for (split, name) in [
                (Split::Train, "train"),
                (Split::Dev, "dev"),
                (Split::Test, "test"),
            ] {
                fs::write(
                    folder.join("qrels").join(format!("{name}.tsv")),
                    self.qrels(split),
                )?;
            }
            Ok(())
        })
    }

    fn qrels(&self, split: Split) -> String {
        let mut rows = "query-id\tcorpus-id\tscore\n".to_owned();
        for query in self.queries.iter().filter(|query| query.split == split) {
            for (_, product, gain) in self.qrels.iter().filter(|(id, ..)| *id == query.id) {
                // Writing to a string can't fail.
                let _ = writeln!(rows, "{}\t{product}\t{gain}", query.id);
            }
        }
        rows
    }
}
