//! From texts to batches, and from batches to scores.
//!
//! Shapes: `N` tokens of a batch, padding included, `D` hidden width.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use fs_err as fs;
use tokenizers::{
    EncodeInput, Encoding, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::attention::UNSEEN;
use crate::blocks::Block;
#[cfg(feature = "gpu")]
use crate::by_hand::Parts;
use crate::config::ModelConfig;
use crate::cross_encoder::{Batch, Classifier, CrossEncoder};
use crate::error::{Error, Result};
use crate::guard::{answered, guard};
use crate::host::HostBert;
use crate::parallel::{is_cpu, parallel_map, parallelism};
#[cfg(feature = "gpu")]
use crate::precision::Precision;

/// One tokenised pair or text, with its special tokens and without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Vocabulary ids.
    pub input_ids: Vec<u32>,
    /// 0 up to the first text's end, 1 in the second.
    pub token_type_ids: Vec<u32>,
}

impl Encoded {
    /// Tokens, special ones included.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token at all, not even a special one.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }
}

/// The tokenizer of a model folder, cutting pairs the way servers do.
#[derive(Debug)]
pub struct PairTokenizer {
    /// Cuts nothing. The library's own cutting while it tokenises cuts each text before it weighs
    /// one against the other, and so gives the odd token of two long texts to another of them than
    /// servers do.
    whole: Tokenizer,
    /// Cuts what is tokenised already, and puts the special tokens around it.
    cutting: Tokenizer,
}

impl PairTokenizer {
    /// Reads `tokenizer.json` in `folder`. Whatever truncation and padding the file asks for,
    /// inputs are cut to `max_tokens`, special tokens included, from the right and the longer text
    /// first, and not padded.
    ///
    /// # Errors
    /// A missing or malformed file, one that does not set the two texts of a pair apart as the
    /// folder's model reads them, or a `max_tokens` without room for a token of each text.
    pub fn open(folder: &Path, max_tokens: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::MissingFile { path });
        }
        let mut tokenizer =
            Tokenizer::from_bytes(fs::read(&path)?).map_err(|source| Error::TokenizerFile {
                path: path.clone(),
                source,
            })?;
        // First the switching off: the file's own truncation would cut the probe below.
        tokenizer.with_padding(None);
        cut(&mut tokenizer, None, &path)?;
        let specials = probe(&tokenizer, folder, &path)?;
        let least = specials + 2;
        if max_tokens < least {
            let problem = format!(
                "max_tokens is {max_tokens}, but a pair of one-token texts takes {least}: raise it"
            );
            return Err(Error::Tokenizer { path, problem });
        }
        let mut cutting = tokenizer.clone();
        cut(&mut cutting, Some(max_tokens), &path)?;
        Ok(Self {
            whole: tokenizer,
            cutting,
        })
    }

    /// Tokenises queries with documents, on all cores, in the order given.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode_pairs(&self, pairs: &[(&str, &str)]) -> Result<Vec<Encoded>> {
        let texts = pairs.iter().flat_map(|&(first, second)| [first, second]);
        let mut encodings = self.tokenise(texts)?.into_iter();
        let mut encoded = Vec::with_capacity(pairs.len());
        while let (Some(first), Some(second)) = (encodings.next(), encodings.next()) {
            encoded.push(self.finish(first, Some(second))?);
        }
        Ok(encoded)
    }

    /// Tokenises single texts, on all cores, in the order given.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode_texts(&self, texts: &[&str]) -> Result<Vec<Encoded>> {
        let encodings = self.tokenise(texts.iter().copied())?.into_iter();
        encodings.map(|text| self.finish(text, None)).collect()
    }

    fn tokenise<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<Vec<Encoding>> {
        let inputs: Vec<EncodeInput> = texts.map(EncodeInput::from).collect();
        self.whole
            .encode_batch_fast(inputs, false)
            .map_err(Error::Tokenize)
    }

    fn finish(&self, first: Encoding, second: Option<Encoding>) -> Result<Encoded> {
        let encoding = self
            .cutting
            .post_process(first, second, true)
            .map_err(Error::Tokenize)?;
        Ok(Encoded {
            input_ids: encoding.get_ids().to_vec(),
            token_type_ids: encoding.get_type_ids().to_vec(),
        })
    }
}

impl Batch {
    /// Pads all inputs to the longest of them: `N` is their number times its length.
    pub fn new(encodings: &[&Encoded], config: &ModelConfig, device: &Device) -> Self {
        let lengths = encodings.iter().map(|encoded| encoded.len());
        let all = Block {
            pairs: encodings.len(),
            // No input is without a token, were it one of padding.
            tokens: lengths.max().unwrap_or(0).max(1),
        };
        Self::in_blocks(encodings, vec![all], config, device)
    }

    /// Each input in a block of its own, so that none is padded: `N` is the sum of their lengths.
    pub fn unpadded(encodings: &[&Encoded], config: &ModelConfig, device: &Device) -> Self {
        let block = |encoded: &&Encoded| Block {
            pairs: 1,
            tokens: encoded.len().max(1),
        };
        let blocks = encodings.iter().map(block).collect();
        Self::in_blocks(encodings, blocks, config, device)
    }

    fn in_blocks(
        encodings: &[&Encoded],
        blocks: Vec<Block>,
        config: &ModelConfig,
        device: &Device,
    ) -> Self {
        let rows = blocks.iter().map(|block| block.rows()).sum();
        let mut input_ids = Vec::with_capacity(rows);
        let mut token_type_ids = Vec::with_capacity(rows);
        let mut position_ids = Vec::with_capacity(rows);
        // Ids are below a table's rows, of which no table has 2^31.
        let id = |id: u32| i32::try_from(id).unwrap_or(i32::MAX);
        let padding = i32::try_from(config.pad_token_id).unwrap_or(i32::MAX);
        for (encoded, tokens) in encodings.iter().zip(padded(&blocks)) {
            let begin = input_ids.len();
            let end = begin + tokens;
            input_ids.extend(encoded.input_ids.iter().copied().map(id));
            input_ids.resize(end, padding);
            // Whatever its tokenizer says, a model that does not tell texts apart has one segment.
            if config.reads_segments() {
                token_type_ids.extend(encoded.token_type_ids.iter().copied().map(id));
            }
            token_type_ids.resize(end, 0);
            if config.counts_from_padding() {
                // RoBERTa's: those of padding tokens, also of one within a text, are the padding token's
                // id, and the others count on from it.
                let mut last = padding;
                position_ids.extend(input_ids[begin..].iter().map(|id| {
                    let is_token = *id != padding;
                    last += i32::from(is_token);
                    if is_token { last } else { padding }
                }));
            } else {
                position_ids.extend((0..).take(tokens));
            }
        }
        Self {
            input_ids,
            token_type_ids,
            position_ids,
            lengths: encodings.iter().map(|encoded| encoded.len()).collect(),
            blocks,
            device: device.clone(),
        }
    }

    /// 1.0 for a token, 0.0 for padding: `[N]`.
    pub(crate) fn mask(&self) -> Tensor<1> {
        let mut mask = Vec::with_capacity(self.tokens());
        for (tokens, padded) in self.lengths() {
            let end = mask.len() + padded;
            mask.resize(mask.len() + tokens, 1.0f32);
            mask.resize(end, 0.0);
        }
        Tensor::from_floats(mask.as_slice(), &self.device)
    }

    /// Some of its ids as a tensor: `[N]`.
    pub(crate) fn on_device(&self, ids: &[i32]) -> Tensor<1, Int> {
        Tensor::from_ints(ids, &self.device)
    }

    /// How many tokens each pair has, and how many with what pads it.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (usize, usize)> {
        self.lengths.iter().copied().zip(padded(&self.blocks))
    }

    /// `N`: how many tokens are computed, those of padding included.
    pub fn tokens(&self) -> usize {
        self.blocks.iter().map(|block| block.rows()).sum()
    }

    /// At which row each block begins.
    pub(crate) fn begins(&self) -> impl Iterator<Item = usize> {
        self.blocks.iter().scan(0, |end, block| {
            let begin = *end;
            *end += block.rows();
            Some(begin)
        })
    }

    /// What is added to the scores of attention: `[B, 1, 1, T]` of each block.
    pub(crate) fn masks(&self) -> Vec<Tensor<4>> {
        let added = (self.mask() - 1.0).mul_scalar(-UNSEEN);
        let mask = |(block, begin): (&Block, usize)| {
            let its = added.clone().narrow(0, begin, block.rows());
            its.reshape([block.pairs, 1, 1, block.tokens])
        };
        self.blocks.iter().zip(self.begins()).map(mask).collect()
    }
}

/// How many tokens each pair of these blocks has.
fn padded(blocks: &[Block]) -> impl Iterator<Item = usize> {
    (blocks.iter()).flat_map(|block| std::iter::repeat_n(block.tokens, block.pairs))
}

/// The length that GPUs pad to: at most 32 lengths up to 512, multiples of 8 up to 128 and of as large a
/// share of larger ones, so an eighth more at most where there are more than 64 tokens. What is fastest
/// for a product of matrices hangs on the powers of two in its sizes, and Burn looks for it anew for each.
fn rounded(tokens: usize) -> usize {
    let step = tokens.next_power_of_two() / 16;
    tokens.next_multiple_of(step.max(8))
}

/// Groups inputs of similar length: each bucket lists places in `lengths`, whose sum stays within
/// `tokens_per_batch` (an input longer than that is alone in its bucket). The longest come first, so that
/// what does not fit in memory fails at once.
pub fn length_buckets(lengths: &[usize], tokens_per_batch: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| Reverse(lengths[place]));
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for place in order {
        match buckets.last_mut() {
            Some(bucket) if lengths[place] <= room => bucket.push(place),
            _ => {
                room = tokens_per_batch;
                buckets.push(vec![place]);
            }
        }
        room = room.saturating_sub(lengths[place]);
    }
    buckets
}

/// The logits of all inputs, in their order. Dropout is off, wherever the model is. Who scores again and again
/// makes a [`Student::for_scores`](crate::Student::for_scores) once.
///
/// # Errors
/// An input that is too long for the model or holds ids it does not know, or a device that fails.
pub fn score(
    model: &CrossEncoder,
    encodings: &[Encoded],
    tokens_per_batch: usize,
) -> Result<Vec<f32>> {
    model.check(encodings)?;
    // Without autodiff: dropout is off.
    let model = &model.valid();
    #[cfg(feature = "gpu")]
    if let Some(parts) = guard(&model.device(), || Parts::of(model))? {
        return score_by_hand(parts, encodings, tokens_per_batch);
    }
    if let Some(host) = HostBert::of(model) {
        let threads = parallelism(&model.device());
        return Ok(host.logits(encodings, threads, tokens_per_batch));
    }
    let logits = run(model, encodings, tokens_per_batch, |model, inputs| {
        model.logits(&model.batch(inputs))
    })?;
    Ok(logits.into_iter().flatten().collect())
}

/// The same in kernels of our own, in 32 bits and without padding.
#[cfg(feature = "gpu")]
pub(crate) fn score_by_hand(
    parts: Parts,
    encodings: &[Encoded],
    tokens_per_batch: usize,
) -> Result<Vec<f32>> {
    let parts = parts.with_precision(Precision::F32);
    let (config, device) = (parts.config(), parts.device());
    check(config, encodings)?;
    let lengths: Vec<usize> = encodings.iter().map(Encoded::len).collect();
    let buckets = length_buckets(&lengths, tokens_per_batch);
    let logits = in_buckets(&device, encodings, buckets, |inputs| {
        let batch = Batch::unpadded(inputs, config, &device);
        parts.logits(&batch).unsqueeze_dim(1)
    })?;
    Ok(logits.into_iter().flatten().collect())
}

/// The logits of all classes of all inputs, in their order.
///
/// # Errors
/// Those of [`score`].
pub fn classify(
    model: &Classifier,
    encodings: &[Encoded],
    tokens_per_batch: usize,
) -> Result<Vec<Vec<f32>>> {
    run(&model.0, encodings, tokens_per_batch, |model, inputs| {
        model.logits(&model.batch(inputs))
    })
}

/// The embeddings of all inputs, in their order: `D` numbers each, of length one.
///
/// # Errors
/// Those of [`score`].
pub fn embed_all(
    model: &CrossEncoder,
    encodings: &[Encoded],
    tokens_per_batch: usize,
) -> Result<Vec<Vec<f32>>> {
    run(model, encodings, tokens_per_batch, |model, inputs| {
        model.embed(&model.batch(inputs))
    })
}

impl CrossEncoder {
    /// What goes into one batch each, as [`length_buckets`] has it, by the lengths that
    /// [`CrossEncoder::batch`] gives inputs on the model's device.
    pub fn buckets(&self, lengths: &[usize], tokens_per_batch: usize) -> Vec<Vec<usize>> {
        let padded: Vec<usize> = lengths.iter().map(|tokens| self.padded(*tokens)).collect();
        length_buckets(&padded, tokens_per_batch)
    }

    /// A batch for the model, on its device: in the blocks that cost least where inputs of like length are
    /// side by side. A block's inputs are padded to the longest of them on the CPU, and on GPUs to the next
    /// of a few lengths.
    pub fn batch(&self, encodings: &[&Encoded]) -> Batch {
        let (config, device) = (self.config(), self.device());
        // No input is without a token, were it one of padding.
        let lengths = (encodings.iter()).map(|encoded| self.padded(encoded.len().max(1)));
        let lengths: Vec<usize> = lengths.collect();
        let blocks = if is_cpu(&device) {
            Block::cheapest(&lengths, cost_on_the_cpu)
        } else {
            Block::cheapest(&lengths, |block| cost_on_a_gpu(block, config))
        };
        Batch::in_blocks(encodings, blocks, config, &device)
    }

    fn padded(&self, tokens: usize) -> usize {
        if is_cpu(&self.device()) {
            return tokens;
        }
        // No more than there are positions for.
        rounded(tokens).min(self.config().max_tokens()).max(tokens)
    }

    /// Whether the model can read `encodings`: to be asked once of everything that will be made
    /// into a [`Batch`], because [`CrossEncoder::forward`] looks up what it is given.
    ///
    /// # Errors
    /// The first input that is too long, or holds an id that the model has no embedding for.
    pub fn check(&self, encodings: &[Encoded]) -> Result<()> {
        check(self.config(), encodings)
    }
}

/// As [`CrossEncoder::check`], of a model of that configuration.
pub(crate) fn check(config: &ModelConfig, encodings: &[Encoded]) -> Result<()> {
    let positions = config.max_tokens();
    let segments = if config.reads_segments() {
        config.type_vocab_size
    } else {
        usize::MAX
    };
    for (index, encoded) in encodings.iter().enumerate() {
        let tokens = encoded.len();
        if tokens > positions {
            return Err(Error::TooLong {
                index,
                tokens,
                positions,
            });
        }
        for (what, ids, size) in [
            ("token id", &encoded.input_ids, config.vocab_size),
            ("segment id", &encoded.token_type_ids, segments),
        ] {
            if let Some(&id) = ids.iter().find(|&&id| id as usize >= size) {
                return Err(Error::UnknownId {
                    index,
                    what,
                    id,
                    size,
                });
            }
        }
    }
    Ok(())
}

/// In tokens. The gradient of what a block is taken from is a pass over all of it.
fn cost_on_the_cpu(block: Block) -> usize {
    block.rows() + 32
}

/// In operations in each layer, there and back, of a GPU that makes 10^14 a second and moves a byte in the
/// time of 50. What a block's kernels take beside that is estimated: some tens, a quarter of a millisecond.
fn cost_on_a_gpu(block: Block, config: &ModelConfig) -> usize {
    const KERNELS: usize = 25_000_000_000;
    // Of a token with another: it is read or written some twelve times, in 32 bits.
    const SCORE: usize = 12 * 4 * 50;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    // Two for a weight, and twice as many on the way back.
    let of_token = 6 * hidden * (4 * hidden + 2 * inner);
    let of_scores = SCORE * config.num_attention_heads * block.tokens;
    KERNELS + block.rows() * (of_token + of_scores)
}

/// Batches that a GPU has before it when it is asked what came of one, so that it never waits.
const AHEAD: usize = 4;

/// One row of output per input, in the order of the inputs.
fn run(
    model: &CrossEncoder,
    encodings: &[Encoded],
    tokens_per_batch: usize,
    output: impl Fn(&CrossEncoder, &[&Encoded]) -> Tensor<2> + Sync,
) -> Result<Vec<Vec<f32>>> {
    model.check(encodings)?;
    // Without autodiff: nothing to keep for a backward pass, and no dropout.
    let model = model.valid();
    let lengths: Vec<usize> = encodings.iter().map(Encoded::len).collect();
    let buckets = model.buckets(&lengths, tokens_per_batch);
    in_buckets(&model.device(), encodings, buckets, |inputs| {
        output(&model, inputs)
    })
}

fn in_buckets(
    device: &Device,
    encodings: &[Encoded],
    buckets: Vec<Vec<usize>>,
    output: impl Fn(&[&Encoded]) -> Tensor<2> + Sync,
) -> Result<Vec<Vec<f32>>> {
    let ask = |bucket: &Vec<usize>| {
        let inputs: Vec<&Encoded> = bucket.iter().map(|&place| &encodings[place]).collect();
        output(&inputs)
    };
    let answer = |output: Tensor<2>| {
        let [_, width] = output.dims();
        Ok::<_, Error>((width, output.try_into_vec_as::<f32>()?))
    };
    let outputs: Vec<(usize, Vec<f32>)> = if is_cpu(device) {
        let threads = parallelism(device);
        let outputs = parallel_map(&buckets, threads, |bucket| answer(ask(bucket)));
        outputs.into_iter().collect::<Result<_>>()?
    } else {
        guard(device, || {
            let (mut asked, mut answers) = (VecDeque::new(), Vec::new());
            let mut buckets = buckets.iter();
            loop {
                let next = buckets.next().map(ask);
                let is_last = next.is_none();
                asked.extend(next);
                if asked.len() > AHEAD || is_last {
                    let Some(first) = asked.pop_front() else {
                        return Ok::<_, Error>(answers);
                    };
                    answers.push(answer(first)?);
                    answered();
                }
            }
        })?
    };
    let mut rows = vec![Vec::new(); encodings.len()];
    for (bucket, (width, values)) in buckets.into_iter().zip(outputs) {
        for (place, row) in bucket.into_iter().zip(values.chunks(width)) {
            rows[place] = row.to_vec();
        }
    }
    Ok(rows)
}

fn cut(tokenizer: &mut Tokenizer, max_tokens: Option<usize>, path: &Path) -> Result<()> {
    let truncation = max_tokens.map(|max_length| TruncationParams {
        max_length,
        strategy: TruncationStrategy::LongestFirst,
        direction: TruncationDirection::Right,
        stride: 0,
    });
    match tokenizer.with_truncation(truncation) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::TokenizerFile {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The special tokens that a pair gets, from how two empty texts come out.
fn probe(tokenizer: &Tokenizer, folder: &Path, path: &Path) -> Result<usize> {
    let pair = tokenizer
        .encode_fast(("", ""), true)
        .map_err(Error::Tokenize)?;
    let segments = pair.get_type_ids();
    let marks_segments = segments.first() == Some(&0) && segments.last() == Some(&1);
    // Where the model reads no segments, tokens around and between the texts are enough.
    if marks_segments || (segments.len() >= 3 && !ModelConfig::read(folder)?.reads_segments()) {
        return Ok(segments.len());
    }
    let problem = format!(
        "a pair comes out with the segments {segments:?}, expected 0 … 1: \
         give it the post_processor of the model's own tokenizer"
    );
    Err(Error::Tokenizer {
        path: PathBuf::from(path),
        problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_every_input_once_within_the_budget() {
        let lengths = [3, 9, 4, 4, 1, 12, 9];
        let buckets = length_buckets(&lengths, 18);
        assert_eq!(buckets, [vec![5], vec![1, 6], vec![2, 3, 0, 4]]);
        for bucket in &buckets {
            let tokens: usize = bucket.iter().map(|&place| lengths[place]).sum();
            assert!(tokens <= 18);
        }
    }

    #[test]
    fn gpus_pad_to_few_lengths_and_by_little() {
        let lengths: std::collections::BTreeSet<usize> = (1..=512).map(rounded).collect();
        assert_eq!(lengths.len(), 32);
        for tokens in 1..=512 {
            let more = rounded(tokens) - tokens;
            assert!(more < 8 || more * 8 < tokens, "{tokens} and {more}");
        }
        assert_eq!(
            [1, 60, 64, 65, 129, 300].map(rounded),
            [8, 64, 64, 72, 144, 320]
        );
    }

    /// The quantiles of a log-normal distribution whose median is 60 tokens.
    #[test]
    fn unlike_lengths_are_padded_by_less_the_larger_the_model() {
        let lengths = [
            12, 15, 17, 20, 21, 23, 25, 26, 28, 29, 30, 32, 33, 34, 35, 37, 38, 39, 41, 42, 43, 45,
            46, 47, 49, 50, 52, 53, 54, 56, 58, 59, 61, 63, 64, 66, 68, 70, 72, 74, 76, 78, 81, 83,
            86, 89, 91, 95, 98, 101, 105, 109, 114, 119, 125, 131, 138, 146, 156, 168, 184, 206,
            241, 326,
        ];
        let tokens: usize = lengths.iter().sum();
        let padded: Vec<usize> = lengths
            .iter()
            .rev()
            .map(|length| rounded(*length))
            .collect();
        let bert = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert");
        let mut config = ModelConfig::read(&bert).unwrap();
        config.num_attention_heads = 12;
        let mut padding = |hidden, inner| {
            (config.hidden_size, config.intermediate_size) = (hidden, inner);
            let blocks = Block::cheapest(&padded, |block| cost_on_a_gpu(block, &config));
            let rows: usize = blocks.iter().map(|block| block.rows()).sum();
            (blocks.len(), 100 - 100 * tokens / rows)
        };
        let of_one = 100 - 100 * tokens / (padded[0] * padded.len());
        assert_eq!(of_one, 79);
        assert_eq!(padding(384, 1536), (3, 38), "MiniLM-L6");
        assert_eq!(padding(768, 3072), (4, 30), "BERT-base");
    }

    #[test]
    fn an_input_over_the_budget_is_alone() {
        assert_eq!(length_buckets(&[5, 50, 5], 10), [vec![1], vec![0, 2]]);
        assert_eq!(length_buckets(&[7, 7], 0), [vec![0], vec![1]]);
        assert!(length_buckets(&[], 10).is_empty());
    }
}
