//! Examples on disk, query by query: memory holds sixteen bytes a query.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use retort_files::Scratch;
use retort_model::Encoded;

use super::Example;
use crate::Result;
use crate::loss::Target;

/// Examples that were written.
pub(crate) struct Store {
    file: Mutex<File>,
    places: Vec<Place>,
}

/// Where a query's examples are.
struct Place {
    begins: u64,
    bytes: u32,
    examples: u32,
}

/// Examples being written.
pub(super) struct Writer {
    file: Scratch,
    places: Vec<Place>,
    written: u64,
}

impl Writer {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            file: Scratch::new()?,
            places: Vec::new(),
            written: 0,
        })
    }

    /// Queries so far.
    pub(super) fn queries(&self) -> usize {
        self.places.len()
    }

    /// Adds a query.
    ///
    /// # Errors
    /// A disk that is full; more than 4 GiB for one query.
    pub(super) fn write(&mut self, id: &str, examples: &[Example]) -> Result<()> {
        let mut block = Vec::new();
        put_bytes(&mut block, id.as_bytes())?;
        for Example { pair, target } in examples {
            for number in [target.logit, target.grade, target.doubt] {
                block.extend(number.to_le_bytes());
            }
            let segments: Vec<u8> = (pair.token_type_ids.iter())
                // No model of this family has more than four; one that had would be refused.
                .map(|segment| u8::try_from(*segment).unwrap_or(u8::MAX))
                .collect();
            put_bytes(&mut block, &segments)?;
            block.extend(pair.input_ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        self.file.write_all(&block)?;
        self.places.push(Place {
            begins: self.written,
            bytes: length(block.len())?,
            examples: length(examples.len())?,
        });
        self.written += block.len() as u64;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Store> {
        Ok(Store {
            file: Mutex::new(self.file.finish()?),
            places: self.places,
        })
    }
}

impl Store {
    /// Queries.
    pub(super) fn queries(&self) -> usize {
        self.places.len()
    }

    /// How many examples a query has.
    pub(super) fn examples(&self, query: usize) -> usize {
        self.places[query].examples as usize
    }

    /// A query's id and examples.
    pub(super) fn read(&self, query: usize) -> Result<(String, Vec<Example>)> {
        let Place {
            begins,
            bytes,
            examples,
        } = self.places[query];
        let mut block = vec![0; bytes as usize];
        {
            // What a thread that panicked leaves is a position, which is set anew each time.
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(begins))?;
            file.read_exact(&mut block)?;
        }
        let mut block = block.as_slice();
        let id = String::from_utf8_lossy(&bytes_of(&mut block)?).into_owned();
        let mut read = Vec::with_capacity(examples as usize);
        for _ in 0..examples {
            let target = Target {
                logit: f32::from_le_bytes(four(&mut block)?),
                grade: f32::from_le_bytes(four(&mut block)?),
                doubt: f32::from_le_bytes(four(&mut block)?),
            };
            let segments = bytes_of(&mut block)?;
            let input_ids = (0..segments.len()).map(|_| Ok(u32::from_le_bytes(four(&mut block)?)));
            let pair = Encoded {
                input_ids: input_ids.collect::<Result<_>>()?,
                token_type_ids: segments.into_iter().map(u32::from).collect(),
            };
            read.push(Example { pair, target });
        }
        Ok((id, read))
    }
}

fn put_bytes(block: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    block.extend(length(bytes.len())?.to_le_bytes());
    block.extend(bytes);
    Ok(())
}

fn bytes_of(block: &mut &[u8]) -> Result<Vec<u8>> {
    let length = u32::from_le_bytes(four(block)?);
    let mut bytes = vec![0; length as usize];
    block.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn four(block: &mut &[u8]) -> Result<[u8; 4]> {
    let mut bytes = [0; 4];
    block.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn length(length: usize) -> Result<u32> {
    let error = |_| std::io::Error::other("the examples of one query take more than 4 GiB");
    Ok(u32::try_from(length).map_err(error)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let example = |number: u32| Example {
            pair: Encoded {
                input_ids: (0..number % 50).map(|place| place * 60_000).collect(),
                token_type_ids: (0..number % 50).map(|place| u32::from(place > 9)).collect(),
            },
            target: Target {
                logit: number as f32,
                grade: -0.25,
                doubt: 1.5,
            },
        };
        let queries: Vec<Vec<Example>> = (0..40)
            .map(|query| (query..3 * query).map(example).collect())
            .collect();
        let mut writer = Writer::new().unwrap();
        for (number, examples) in queries.iter().enumerate() {
            writer.write(&format!("q{number}"), examples).unwrap();
        }
        let store = writer.finish().unwrap();
        assert_eq!(store.queries(), 40);
        for (number, examples) in queries.iter().enumerate().rev() {
            assert_eq!(store.examples(number), examples.len());
            let (id, read) = store.read(number).unwrap();
            assert_eq!((id, &read), (format!("q{number}"), examples));
        }
    }
}
