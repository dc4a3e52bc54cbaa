//! Files as they are found in the world, imported and read back as a collection.

#![allow(clippy::unwrap_used, reason = "a test's panic names the line")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, BinaryArray, Float32Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use retort_data::Error;
use retort_data::collection::Collection;
use retort_data::import::{Columns, Files, Format, OnBadRow, Shape, Source, Summary, import};
use retort_data::trec::Run;
use tempfile::TempDir;

/// A folder of files to import, into `out` of it.
struct Case {
    folder: TempDir,
    format: Format,
    files: Files,
    columns: Columns,
}

impl Case {
    fn new(format: Format, corpus: impl AsRef<[u8]>, queries: impl AsRef<[u8]>) -> Self {
        let mut case = Self {
            folder: tempfile::tempdir().unwrap(),
            format,
            files: Files::default(),
            columns: Columns::default(),
        };
        case.files.corpus = vec![case.write("corpus", corpus)];
        case.files.queries = vec![case.write("queries", queries)];
        case
    }

    fn qrels(mut self, qrels: impl AsRef<[u8]>) -> Self {
        self.files.qrels = vec![("test".to_owned(), self.write("qrels", qrels))];
        self
    }

    fn run(mut self, run: impl AsRef<[u8]>) -> Self {
        self.files.runs = vec![self.write("dense.run", run)];
        self
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        path
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn import(&self, on_bad_row: OnBadRow) -> Result<Summary, Error> {
        let source = Source::Tables {
            format: self.format,
            files: self.files.clone(),
            columns: self.columns.clone(),
        };
        import(&source, &self.out(), on_bad_row)
    }

    fn imported(&self) -> (Collection, Summary) {
        let summary = self.import(OnBadRow::Fail).unwrap();
        (Collection::read(&self.out()).unwrap(), summary)
    }

    /// What the import fails with, having written nothing.
    fn refused(&self) -> String {
        let error = self.import(OnBadRow::Fail).unwrap_err().to_string();
        assert!(!self.out().exists());
        error
    }
}

/// The texts of a collection's documents, by id.
fn texts(collection: &Collection) -> Vec<[String; 2]> {
    let mut texts: Vec<[String; 2]> = collection
        .documents()
        .map(|one| one.unwrap())
        .map(|one| [one.id.clone(), one.full_text()])
        .collect();
    texts.sort();
    texts
}

const QUERIES: &str = "{\"query_id\": 1, \"query\": \"drill\"}\n";

#[test]
fn classic_trec() {
    let case = Case::new(
        Format::ByContent,
        "<DOC>\n<DOCNO> A-1 </DOCNO>\n<HEAD>Tools</HEAD>\n<TEXT>\nA <b>drill</b>\n</TEXT>\n</DOC>\n\
         <DOC>\n<DOCNO>A-2</DOCNO>\n<TEXT></TEXT>\n</DOC>\n",
        "<top>\n<num> Number: 301\n<title> drills\n<desc> Description: x\n</top>\n",
    )
    .qrels("301 0 A-1 2\n301 0 A-2 -2\n301 0 A-1 2\n")
    .run("301 Q0 A-2 1 0.5 x\n301 Q0 A-1 2 0.75 x\n");
    let (collection, summary) = case.imported();
    assert_eq!(texts(&collection), [["A-1", "Tools. A drill"], ["A-2", ""]]);
    assert_eq!(collection.queries().next().unwrap().unwrap().text, "drills");
    // -2 is spam: as worthless as 0, and not a row to fail on.
    let gains = &collection.qrels("test").unwrap()["301"];
    assert_eq!((gains["A-1"], gains["A-2"]), (2, 0));
    let expected = (2, 1, 1, 1, 1);
    let Summary {
        documents,
        without_text,
        queries,
        below_zero,
        repeated,
        ..
    } = summary;
    assert_eq!(
        (documents, without_text, queries, below_zero, repeated),
        expected
    );
    let run = Run::read(&case.out().join("runs/dense.tsv"), |_| true, |_| Ok(true)).unwrap();
    assert_eq!(run.documents["301"], ["A-1", "A-2"]);
}

#[test]
fn ms_marco() {
    let mut case = Case::new(
        Format::ByContent,
        "0\tThe \"Manhattan\" project\n1\tbombs, and\n2\ttowels\n",
        "9\twhat was it?\n",
    )
    .qrels("9\t0\t1\t1\n")
    .run("9\t1\twhat was it?\tbombs, and\n9\t0\twhat was it?\tThe \"Manhattan\" project\n");
    case.files.triples = vec![case.write("triples.tsv", "9\t1\t2\n9\t1\t0\n")];
    let (collection, summary) = case.imported();
    assert_eq!(texts(&collection)[0], ["0", "The \"Manhattan\" project"]);
    assert_eq!(collection.qrels("test").unwrap()["9"]["1"], 1);
    assert_eq!(summary.ranked["dense"], 2);
    let triples = Run::read(&case.out().join("runs/triples.tsv"), |_| true, |_| Ok(true)).unwrap();
    assert_eq!(triples.documents["9"], ["1", "2", "0"]);
}

#[test]
fn csv_with_fields_as_text_and_ids_with_spaces() {
    let format = Format::Csv { delimiter: ',' };
    let mut case = Case::new(
        format,
        "\u{feff}sku,title,brand,description\r\nd 1,Drill,Vantrix,\"18 V,\r\ncordless\"\r\n",
        "qid,question\nq 1,\"drill, please\"\n",
    )
    .qrels("query_id,document_id,grade\nq 1,d 1,3\n");
    case.columns.id = Some("sku".to_owned());
    case.columns.text = Some(r"{{ title }} | {{ brand }}\n{{ description }}".to_owned());
    let (collection, _) = case.imported();
    assert_eq!(
        texts(&collection),
        [["d 1", "Drill | Vantrix\n18 V,\ncordless"]]
    );
    assert_eq!(collection.qrels("test").unwrap()["q 1"]["d 1"], 3);

    fs_err::remove_dir_all(case.out()).unwrap();
    case.columns.text = Some("{{ name }}".to_owned());
    let error = case.refused();
    assert!(
        error.contains("corpus:2: --text: undefined value"),
        "{error}"
    );
    assert!(error.contains("brand, description, sku, title"), "{error}");
}

#[test]
fn tsv_has_no_quotes_and_qrels_with_named_columns() {
    let case = Case::new(
        Format::Tsv,
        "id\ttext\n1\t\"5\" pipe\n",
        "qid\tquery\n1\tpipe\n",
    )
    .qrels("grade\tquery_id\trater\tdocument_id\n2.0\t1\tx\t1\n");
    let (collection, _) = case.imported();
    assert_eq!(texts(&collection), [["1", "\"5\" pipe"]]);
    assert_eq!(collection.qrels("test").unwrap()["1"]["1"], 2);
}

/// A Parquet file, as pandas and Hugging Face datasets write it.
fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn parquet_has_numbers_holes_lists_and_bytes() {
    let tags = [Some(vec![Some("a"), Some("b")]), None];
    let mut lists = ListBuilder::new(StringBuilder::new());
    for tags in tags {
        lists.append_option(tags);
    }
    let corpus = parquet(vec![
        ("id", Arc::new(Int64Array::from(vec![7, 8]))),
        (
            "title",
            Arc::new(StringArray::from(vec![Some("Drill"), None])),
        ),
        ("price", Arc::new(Float32Array::from(vec![12.99, 3.0]))),
        ("tags", Arc::new(lists.finish())),
        (
            "image",
            Arc::new(BinaryArray::from(vec![&b"\xff\xd8"[..], b""])),
        ),
    ]);
    let queries = parquet(vec![
        ("query_id", Arc::new(StringArray::from(vec!["1"]))),
        ("query", Arc::new(StringArray::from(vec!["drill"]))),
    ]);
    let qrels = parquet(vec![
        ("query_id", Arc::new(Int64Array::from(vec![1]))),
        ("document_id", Arc::new(Int64Array::from(vec![7]))),
        ("grade", Arc::new(Float32Array::from(vec![2.0]))),
    ]);
    let mut case = Case::new(Format::Parquet, corpus, queries).qrels(qrels);
    case.columns.text = Some("{{ title }} {{ price }} {{ tags | join('+') }}".to_owned());
    let (collection, _) = case.imported();
    let expected = [["7", "Drill 12.99 a+b"], ["8", "3.0"]];
    assert_eq!(texts(&collection), expected);
    assert_eq!(collection.qrels("test").unwrap()["1"]["7"], 2);

    fs_err::remove_dir_all(case.out()).unwrap();
    case.columns.text = Some("{{ image }}".to_owned());
    assert!(case.refused().contains("corpus:1: --text: undefined value"));
    case.write("corpus", "{}");
    assert!(case.refused().contains("corpus: is no Parquet file"));
}

#[test]
fn a_beir_folder_with_other_fields_and_rows_to_mend() {
    let case = Case::new(
        Format::Jsonl,
        "{\"_id\": \"d\", \"title\": null, \"text\": \"a\", \"metadata\": {\"url\": \"u\"}}\n",
        "{\"_id\": \"q\", \"text\": \"a?\", \"metadata\": {}}\n",
    );
    let folder = case.folder.path();
    fs_err::create_dir(folder.join("qrels")).unwrap();
    for (name, to) in [("corpus", "corpus.jsonl"), ("queries", "queries.jsonl.gz")] {
        fs_err::rename(folder.join(name), folder.join(to)).unwrap();
    }
    case.write(
        "qrels/test.tsv",
        "query-id\tcorpus-id\tscore\nq\td\t-1\nq\tx\t1\n",
    );
    case.write("qrels/dev.tsv", "query-id\tcorpus-id\tscore\nq\td\t2\n");
    let source = Source::Tables {
        format: Format::Jsonl,
        files: Files::of_beir(folder),
        columns: Columns::default(),
    };
    let error = import(&source, &case.out(), OnBadRow::Fail)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("test.tsv:3: names the document \"x\""),
        "{error}"
    );
    let summary = import(&source, &case.out(), OnBadRow::Skip).unwrap();
    assert_eq!((summary.bad_rows, summary.below_zero), (1, 1));
    let collection = Collection::read(&case.out()).unwrap();
    assert_eq!(collection.splits(), ["dev", "test"]);
    assert_eq!(collection.qrels("test").unwrap()["q"]["d"], 0);
    assert_eq!(collection.qrels("dev").unwrap()["q"]["d"], 2);
}

#[test]
fn two_runs_of_one_name_are_refused() {
    let mut case = Case::new(Format::ByContent, "d\ta\n", "1\tb\n").run("1 Q0 d 1 0.5 x\n");
    let other = case.folder.path().join("other");
    fs_err::create_dir(&other).unwrap();
    fs_err::write(other.join("dense.run.gz"), "1 Q0 d 1 0.5 x\n").unwrap();
    case.files.triples = vec![other.join("dense.run.gz")];
    let error = case.refused();
    assert!(error.contains("\"dense\": two runs would"), "{error}");
}

fn examples(shape: Shape, lines: &str, on_bad_row: OnBadRow) -> (TempDir, Result<Summary, Error>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    fs_err::write(&path, lines).unwrap();
    let files = vec![("train".to_owned(), path)];
    let source = Source::Examples { shape, files };
    let imported = import(&source, &folder.path().join("out"), on_bad_row);
    (folder, imported)
}

/// Texts with a gain, and texts of the run, of the only query.
fn read_back(folder: &Path) -> (Vec<String>, Vec<String>) {
    let collection = Collection::read(&folder.join("out")).unwrap();
    let text = |id: &String| collection.document(id, folder).unwrap().full_text();
    let qrels = collection.qrels("train").unwrap();
    let gains = qrels.values().next().unwrap();
    let run = Run::read(&folder.join("out/runs/train.tsv"), |_| true, |_| Ok(true)).unwrap();
    let ranked = run.documents.values().next().unwrap();
    (
        gains.keys().map(text).collect(),
        ranked.iter().map(text).collect(),
    )
}

#[test]
fn flag_embedding_orders_by_score() {
    let line = r#"{"query": "drill", "pos": ["a b"], "neg": ["c", "d"], "pos_scores": [0.5], "neg_scores": [0.1, 0.9]}"#;
    let (folder, imported) = examples(
        Shape::FlagEmbedding,
        &format!("{line}\n{line}\n"),
        OnBadRow::Fail,
    );
    let Summary {
        documents, queries, ..
    } = imported.unwrap();
    assert_eq!((documents, queries), (3, 1));
    let (gains, ranked) = read_back(folder.path());
    assert_eq!(gains, ["a b"]);
    assert_eq!(ranked, ["d", "a b", "c"]);
}

#[test]
fn tevatron_keeps_ids_and_titles() {
    let line = r#"{"query_id": "q", "query": "drill", "positive_passages": [{"docid": "a", "title": "t", "text": "x"}], "negative_passages": [{"docid": "b", "title": "", "text": "y"}]}"#;
    let (folder, imported) = examples(Shape::Tevatron, line, OnBadRow::Fail);
    imported.unwrap();
    let (gains, ranked) = read_back(folder.path());
    assert_eq!(gains, ["t. x"]);
    assert_eq!(ranked, ["t. x", "y"]);

    let other = line.replace("\"t\"", "\"u\"").replace("\"q\"", "\"r\"");
    let (_, imported) = examples(
        Shape::Tevatron,
        &format!("{line}\n{other}\n"),
        OnBadRow::Fail,
    );
    let error = imported.unwrap_err().to_string();
    assert!(
        error.contains("train.jsonl:2: the document \"a\" was given before"),
        "{error}"
    );
}

#[test]
fn a_bad_row_fails_the_import_with_its_line_and_writes_nothing() {
    let good = "{\"_id\": \"d\", \"text\": \"a\"}\n";
    let long = format!(
        "{{\"_id\": \"e\", \"text\": \"{}\"}}\n",
        "x".repeat(10_000_000)
    );
    for (row, expected) in [
        ("{\"_id\": \"e\"\n", ":2: EOF while parsing"),
        (
            "{\"_id\": \"\", \"text\": \"b\"}\n",
            ":2: the document's id is empty: give it one",
        ),
        (
            "{\"_id\": \"a\\tb\", \"text\": \"b\"}\n",
            ":2: the document's id \"a\\tb\" has a tab",
        ),
        (
            "{\"_id\": \"e\", \"text\": \"\\u0000\"}\n",
            ":2: its text holds a NUL",
        ),
        (
            "{\"_id\": \"e\", \"text\": \"\0\"}\n",
            ":2: holds a NUL byte",
        ),
        (
            "{\"_id\": \"d\", \"text\": \"b\"}\n",
            ":2: the document \"d\" was given before with other",
        ),
        (
            "{\"id\": \"e\", \"name\": \"b\"}\n",
            ":2: has no field text or contents or",
        ),
        (&long, ":2: longer than 8 MiB"),
    ] {
        let error = Case::new(Format::Jsonl, format!("{good}{row}"), QUERIES).refused();
        assert!(error.contains(expected), "{error}");
    }
    // Read, it fits; as JSON it would not be read again.
    let tsv = format!("id\ttext\n1\t{}\n", "\u{1}".repeat(2 << 20));
    let error = Case::new(Format::Tsv, tsv, "id\tquery\n1\ta\n").refused();
    assert!(
        error.contains("corpus:2: its text is longer than 8 MiB"),
        "{error}"
    );
    let blank = Case::new(Format::Jsonl, good, "{\"query_id\": 1, \"query\": \" \"}\n").refused();
    assert!(
        blank.contains("queries:1: the query \"1\" has no text"),
        "{blank}"
    );
    for (qrels, expected) in [
        ("1 0 nowhere 1\n", ":1: names the document \"nowhere\""),
        ("1 0 d 1\n7 0 d 1\n", ":2: names the query \"7\""),
        ("1 0 d 31\n", ":1: the grade 31 is above 30"),
        (
            "1 0 d 1\n1 0 d 2\n",
            ":2: the pair \"1\" \"d\" was given another grade",
        ),
        (
            "1 0 my d 1\n",
            ":1: 5 columns, expected query 0 document grade",
        ),
    ] {
        let error = Case::new(Format::Jsonl, good, QUERIES)
            .qrels(qrels)
            .refused();
        assert!(error.contains(&format!("qrels{expected}")), "{error}");
    }
    let run = Case::new(Format::Jsonl, good, QUERIES)
        .run("1 Q0 d 1 high x\n")
        .refused();
    assert!(
        run.contains("dense.run:1: the score \"high\" is not a number"),
        "{run}"
    );
}

#[test]
fn bad_rows_are_skipped_and_counted_where_that_is_asked_for() {
    let good = "{\"_id\": \"d\", \"text\": \"a\"}\n";
    let case = Case::new(Format::Jsonl, format!("{good}{{\n{good}{{\n"), QUERIES)
        .qrels("1 0 d 1\n1 0 nowhere 1\n");
    let summary = case.import(OnBadRow::Skip).unwrap();
    assert_eq!(
        (summary.documents, summary.repeated, summary.bad_rows),
        (1, 1, 3)
    );
    assert!(
        summary.first_bad[0].contains("corpus:2: "),
        "{:?}",
        summary.first_bad
    );
    assert!(
        summary.first_bad[2].contains("qrels:2: "),
        "{:?}",
        summary.first_bad
    );

    // A row is kept whole or not at all.
    let passages = |text: &str| {
        format!(
            r#"{{"query_id": "{text}", "query": "b", "positive_passages":
            [{{"docid": "{text}", "text": "a"}}, {{"docid": "d", "text": "{text}"}}]}}"#
        )
        .replace('\n', "")
    };
    let (folder, imported) = examples(
        Shape::Tevatron,
        &[passages("1"), passages("2")].join("\n"),
        OnBadRow::Skip,
    );
    let summary = imported.unwrap();
    assert_eq!(
        (summary.bad_rows, summary.documents, summary.queries),
        (1, 2, 1)
    );
    let (gains, ranked) = read_back(folder.path());
    assert_eq!(
        (gains, ranked),
        (vec!["a".into(), "1".into()], vec!["a".into(), "1".into()])
    );
    let mut case = Case::new(Format::ByContent, "d\ta\n", "1\tb\n");
    case.files.triples = vec![case.write("triples", "1\td\tnowhere\n")];
    let summary = case.import(OnBadRow::Skip).unwrap();
    assert_eq!((summary.bad_rows, summary.ranked["triples"]), (1, 0));

    // All of them being bad is no collection.
    let case = Case::new(Format::Jsonl, "{\n{\n", QUERIES);
    let error = case.import(OnBadRow::Skip).unwrap_err().to_string();
    assert!(error.contains("corpus: has no documents\n"), "{error}");
    assert!(error.contains("corpus:1: "), "{error}");
    assert!(!case.out().exists());
    // No rows at all, and why that may be.
    let mut case = Case::new(Format::Csv { delimiter: ',' }, "id,text\rd,a\r", QUERIES);
    let more = case.write("more", "");
    case.files.corpus.push(more);
    let error = case.refused();
    for said in [
        "corpus: has no documents, nor has ",
        "more; ",
        "corpus end in CR alone",
    ] {
        assert!(error.contains(said), "{error}");
    }
    // A damaged archive is no bad row: what follows is lost.
    let packed = zstd::encode_all(good.repeat(100).as_bytes(), 3).unwrap();
    let case = Case::new(Format::Jsonl, &packed[..packed.len() - 4], QUERIES);
    let error = case.import(OnBadRow::Skip).unwrap_err().to_string();
    assert!(error.contains("fetch it again"), "{error}");
}
