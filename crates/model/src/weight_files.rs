//! Weight files as they lie on disk: one, or an index and the files it names.
//!
//! A file may come from anywhere, so nothing it says is believed: its header is held against its
//! size and the model before a tensor is read, and a tensor is read into as much memory as it has
//! bytes in the file.
//!
//! The format: eight bytes with the header's length, the header in JSON, the tensors one after
//! another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use burn::tensor::{bf16, f16};
use fs_err as fs;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes of the longest header, or index, that is read. A tensor takes some hundred.
const LONGEST_HEADER: u64 = 16 << 20;
/// Tensors that a file may have. The largest of these models has some four hundred.
const MOST_TENSORS: usize = 10_000;

/// A tensor in a file.
pub(crate) struct StoredTensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    file: Rc<fs::File>,
    start: u64,
    bytes: usize,
}

/// The files with a model folder's weights: one, or an index and those that it names.
///
/// # Errors
/// No weights, or pickled ones; an index that is damaged or names files elsewhere.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let path = weights_path(folder)?;
    if !is_index(&path) {
        return Ok(vec![path]);
    }
    let index = Index::read(&path)?;
    let shards = index.shards().into_iter().map(|shard| folder.join(shard));
    Ok(std::iter::once(path).chain(shards).collect())
}

/// The file or index that a folder's weights are in, or why there is none.
pub(crate) fn weights_path(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(WEIGHTS);
    let index = folder.join(INDEX);
    if path.exists() {
        return Ok(path);
    }
    if index.exists() {
        return Ok(index);
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

/// The tensors of a file, or of the files that an index names, by the names they are stored under.
pub(crate) fn stored_tensors(path: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    if is_index(path) {
        of_index(path)
    } else {
        of_file(path)
    }
}

impl StoredTensor {
    /// The file it is in.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its values as 32-bit numbers; `None` if they aren't floating-point of 16 or 32 bits.
    pub(crate) fn read(&self) -> Result<Option<Vec<f32>>> {
        let to_singles: fn(&[u8]) -> Vec<f32> = match self.dtype {
            Dtype::F32 => |data| singles(data, f32::from_le_bytes),
            Dtype::F16 => |data| singles(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => |data| singles(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => return Ok(None),
        };
        let mut data = vec![0; self.bytes];
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(self.start))?;
        file.read_exact(&mut data)?;
        Ok(Some(to_singles(&data)))
    }
}

fn singles<const N: usize>(data: &[u8], single: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks()
        .0
        .iter()
        .map(|bytes| single(*bytes))
        .collect()
}

fn is_index(path: &Path) -> bool {
    path.ends_with(INDEX)
}

fn of_file(path: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    let damaged = |problem| Error::Weights {
        path: path.to_owned(),
        problem,
    };
    let file = Rc::new(fs::File::open(path)?);
    let size = file.metadata()?.len();
    let mut length = [0; 8];
    let Some(most) = size.checked_sub(length.len() as u64) else {
        return Err(damaged(format!("it has {size} bytes, not even a header")));
    };
    (&*file).read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let most = most.min(LONGEST_HEADER);
    if length > most {
        let problem = format!("its header is said to have {length} bytes, but {most} are the most");
        return Err(damaged(problem));
    }
    let header = read_json::<Unique<TensorInfo>>(path, (&*file).take(length))?;

    let start = 8 + length;
    let mut tensors: Vec<(String, TensorInfo)> = header.0.into_iter().collect();
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut end = 0;
    let mut stored = BTreeMap::new();
    for (name, tensor) in tensors {
        let TensorInfo { dtype, shape, .. } = tensor;
        let (from, to) = tensor.data_offsets;
        let bytes = bytes_of(dtype, &shape);
        if from != end || bytes.is_none() || to.checked_sub(from) != bytes {
            let bytes = bytes.map(|bytes| bytes.to_string());
            let bytes = bytes.as_deref().unwrap_or("an impossible number of");
            return Err(damaged(format!(
                "{name}, {dtype} of {shape:?}, lies from {from} to {to}, where it would have to \
                 begin at {end} and take {bytes} bytes"
            )));
        }
        let tensor = StoredTensor {
            dtype,
            shape,
            file: Rc::clone(&file),
            start: start + from as u64,
            bytes: to - from,
        };
        stored.insert(name, tensor);
        end = to;
    }
    let left = size - start;
    if end as u64 != left {
        return Err(damaged(format!(
            "its tensors take {end} bytes, but {left} follow the header"
        )));
    }
    Ok(stored)
}

/// The bytes that a tensor takes, if that is a whole number of them.
fn bytes_of(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize(), |bits, size| bits.checked_mul(*size))?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn of_index(path: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    let index = Index::read(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut stored = BTreeMap::new();
    for shard in index.shards() {
        let path = folder.join(shard);
        if !path.exists() {
            return Err(Error::MissingFile { path });
        }
        for (name, tensor) in of_file(&path)? {
            if index.weight_map.0.get(&name) != Some(shard) {
                let problem = format!("it holds {name}, which {INDEX} does not put there");
                return Err(Error::Weights { path, problem });
            }
            stored.insert(name, tensor);
        }
    }
    for (name, shard) in &index.weight_map.0 {
        if !stored.contains_key(name) {
            let path = folder.join(shard);
            let problem = format!("it lacks {name}, which {INDEX} puts there");
            return Err(Error::Weights { path, problem });
        }
    }
    Ok(stored)
}

/// Which file each tensor is in.
#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let file = fs::File::open(path)?;
        let size = file.metadata()?.len();
        let damaged = |problem| Error::Weights {
            path: path.to_owned(),
            problem,
        };
        if size > LONGEST_HEADER {
            let problem = format!("it has {size} bytes, but {LONGEST_HEADER} are the most");
            return Err(damaged(problem));
        }
        let index: Self = read_json(path, file.take(LONGEST_HEADER))?;
        for (name, shard) in &index.weight_map.0 {
            if !is_beside(shard) {
                let problem = format!("it puts {name} into {shard:?}, which is no file beside it");
                return Err(damaged(problem));
            }
        }
        Ok(index)
    }

    fn shards(&self) -> BTreeSet<&String> {
        self.weight_map.0.values().collect()
    }
}

/// Whether a name is that of a weight file in the same folder, and no way out of it.
fn is_beside(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_one = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(one)), None) if one == name
    );
    is_one && name.ends_with(".safetensors") && !name.contains(['\\', ':', '\0'])
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path, mut source: impl Read) -> Result<T> {
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Header {
        path: path.to_owned(),
        source,
    })
}

/// A JSON object without repeated keys, of which readers would take one or the other. What stands
/// under `__metadata__` is of no tensor and passed over.
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
    type Value = Unique<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a key for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if entries.len() == MOST_TENSORS {
                return Err(A::Error::custom(format!(
                    "more than {MOST_TENSORS} tensors"
                )));
            }
            let value = map.next_value()?;
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format!("{name} stands there twice")));
            }
            entries.insert(name, value);
        }
        Ok(Unique(entries))
    }
}
