//! BM25 over a corpus, in memory or, of a large one, on disk (tantivy: Robertson and Zaragoza's BM25 with k1 = 1.2, b = 0.75).

use std::collections::{HashMap, HashSet};

use tantivy::collector::TopDocs;
use tantivy::directory::MmapDirectory;
use tantivy::query::{BooleanQuery, Occur, Query, TermQuery};
use tantivy::schema::{
    Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions, Value,
};
use tantivy::tokenizer::{LowerCaser, NgramTokenizer, TextAnalyzer};
use tantivy::{Index, IndexReader, IndexSettings, TantivyDocument, TantivyError, Term, doc};
use tempfile::TempDir;

use crate::Result;
use crate::collection::Collection;

/// What a query and a document must share to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matching {
    /// English words, stemmed.
    Words,
    /// Runs of three characters: finds misspelt words, and words inside words.
    Trigrams,
}

/// An index over a corpus.
pub struct Bm25 {
    /// Where it is, unless it is in memory.
    _folder: Option<TempDir>,
    reader: IndexReader,
    analyzer: TextAnalyzer,
    id: Field,
    body: Field,
    documents: usize,
}

/// Bytes the indexer may hold before it writes a segment: tantivy's least is 15 MB.
const INDEXER_BYTES: usize = 20_000_000;
/// An index of a larger corpus is not held in memory.
const BYTES_IN_MEMORY: u64 = 64 << 20;

impl Bm25 {
    /// Indexes a corpus.
    ///
    /// # Errors
    /// A document that can't be read; when the index can't be built.
    pub fn index(collection: &Collection, matching: Matching) -> Result<Self> {
        let tokenizer = match matching {
            Matching::Words => "en_stem",
            Matching::Trigrams => "trigrams",
        };
        let indexing = TextFieldIndexing::default()
            .set_tokenizer(tokenizer)
            .set_index_option(IndexRecordOption::WithFreqs);
        let mut schema = Schema::builder();
        let id = schema.add_text_field("id", STRING | STORED);
        let body = schema.add_text_field(
            "body",
            TextOptions::default().set_indexing_options(indexing),
        );
        let (schema, settings) = (schema.build(), IndexSettings::default());
        let (folder, index) = if collection.corpus_bytes() > BYTES_IN_MEMORY {
            let folder = retort_files::scratch_folder()?;
            let directory = MmapDirectory::open(folder.path()).map_err(TantivyError::from)?;
            (Some(folder), Index::create(directory, schema, settings)?)
        } else {
            (None, Index::create_in_ram(schema))
        };
        let trigrams = TextAnalyzer::builder(NgramTokenizer::new(3, 3, false)?)
            .filter(LowerCaser)
            .build();
        index.tokenizers().register("trigrams", trigrams);

        // One thread: the order of segments, and so of equal scores, is the same on every machine.
        let mut writer = index.writer_with_num_threads(1, INDEXER_BYTES)?;
        let mut count = 0;
        for document in collection.documents() {
            let document = document?;
            writer.add_document(doc!(id => &*document.id, body => document.full_text()))?;
            count += 1;
        }
        writer.commit()?;
        let analyzer = index.tokenizer_for_field(body)?;
        Ok(Self {
            _folder: folder,
            reader: index.reader()?,
            analyzer,
            id,
            body,
            documents: count,
        })
    }

    /// The best `k` documents, best first: id and score, equal scores ordered by id.
    ///
    /// # Errors
    /// When the search fails.
    pub fn search(&self, query: &str, k: usize) -> Result<Vec<(String, f32)>> {
        let Some(query) = self.query(query) else {
            return Ok(Vec::new());
        };
        let searcher = self.reader.searcher();
        // All of them, so that the order of equal scores does not depend on the index.
        let limit = self.documents.max(1);
        let mut hits = Vec::new();
        for (score, address) in
            searcher.search(&query, &TopDocs::with_limit(limit).order_by_score())?
        {
            let document: TantivyDocument = searcher.doc(address)?;
            let id = document.get_first(self.id).and_then(|value| value.as_str());
            hits.push((id.unwrap_or_default().to_owned(), score));
        }
        hits.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        hits.truncate(k);
        Ok(hits)
    }

    /// The scores of some documents: of those that match at all.
    ///
    /// # Errors
    /// When the search fails.
    pub fn scores(&self, query: &str, of: &HashSet<&str>) -> Result<HashMap<String, f32>> {
        let mut found = self.search(query, usize::MAX)?;
        found.retain(|(id, _)| of.contains(&**id));
        Ok(found.into_iter().collect())
    }

    fn query(&self, text: &str) -> Option<BooleanQuery> {
        let mut analyzer = self.analyzer.clone();
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        analyzer.token_stream(text).process(&mut |token| {
            let term = Term::from_field_text(self.body, &token.text);
            let query = TermQuery::new(term, IndexRecordOption::WithFreqs);
            clauses.push((Occur::Should, Box::new(query)));
        });
        (!clauses.is_empty()).then(|| BooleanQuery::new(clauses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Collection {
        let folder = tempfile::tempdir().unwrap();
        let corpus = [
            ("a", "cordless drill 18 V"),
            ("b", "drill bit set"),
            ("c", "bath towel"),
        ]
        .map(|(id, text)| format!("{{\"_id\":\"{id}\",\"text\":\"{text}\"}}\n"));
        fs_err::write(folder.path().join("corpus.jsonl"), corpus.concat()).unwrap();
        let queries = "{\"_id\":\"q\",\"text\":\"\"}\n";
        fs_err::write(folder.path().join("queries.jsonl"), queries).unwrap();
        Collection::read(folder.path()).unwrap()
    }

    fn found(matching: Matching, query: &str) -> Vec<String> {
        let bm25 = Bm25::index(&corpus(), matching).unwrap();
        bm25.search(query, 10)
            .unwrap()
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    }

    #[test]
    fn words_are_stemmed_and_rare_ones_weigh_more() {
        assert_eq!(found(Matching::Words, "Drills bits"), ["b", "a"]);
        assert!(found(Matching::Words, "?!").is_empty());
    }

    #[test]
    fn trigrams_find_what_is_misspelt() {
        assert!(found(Matching::Words, "cordles").is_empty());
        assert_eq!(found(Matching::Trigrams, "cordles"), ["a"]);
    }

    #[test]
    fn the_score_is_bm25s() {
        let scores = Bm25::index(&corpus(), Matching::Words)
            .unwrap()
            .scores("towel", &HashSet::from(["c", "a"]))
            .unwrap();
        // idf = ln(1 + (3 − 1 + 0.5) / 1.5); lengths 4, 3, 2 with mean 3, tf = 1.
        let idf = (1.0_f32 + 2.5 / 1.5).ln();
        let expected = idf * 2.2 / (1.0 + 1.2 * (0.25 + 0.75 * 2.0 / 3.0));
        assert!(
            (scores["c"] - expected).abs() < 1e-5,
            "{} {expected}",
            scores["c"]
        );
    }
}
