use std::path::PathBuf;

use clap::{Args, Subcommand};
use retort_data::shop;
use serde_json::json;

use crate::progress;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A home and hardware shop: products, shoppers' queries, and relevance known by construction
    Shop {
        /// The folder to write; it must not exist
        #[arg(long, value_name = "DIR")]
        out: PathBuf,

        /// The same seed gives the same bytes
        #[arg(long, default_value_t = shop::SEED)]
        seed: u64,
    },
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let What::Shop { out, seed } = &arguments.what;
    let shop = shop::generate(*seed);
    shop.write(out)?;
    progress::summary(
        as_json,
        &format!(
            "{}: {} products, {} queries, {} pairs with a gain",
            out.display(),
            shop.products.len(),
            shop.queries.len(),
            shop.qrels.len()
        ),
        &json!({
            "out": out,
            "products": shop.products.len(),
            "queries": shop.queries.len(),
            "gains": shop.qrels.len(),
        }),
    );
    Ok(())
}
