//! Event files, which TensorBoard reads: records of protocol buffers, framed as TFRecord.

use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;

use crate::Result;

/// An event file of one process. That of a process that goes on with a run tells which events of the
/// files before it are no longer true.
pub(crate) struct EventFile {
    file: fs::File,
}

impl EventFile {
    /// A new file in a run's folder. What older files have of `next_step` and later is to be forgotten.
    pub(crate) fn create(run: &Path, next_step: u64) -> Result<Self> {
        let now = seconds();
        // Sorted by name they are in the order of time.
        let name = format!("events.out.tfevents.{now:017.6}.retort");
        let mut file = Self {
            file: fs::File::create(run.join(name))?,
        };
        file.record(&version())?;
        file.record(&session_start(now, next_step))?;
        Ok(file)
    }

    /// Numbers by name, after so many steps.
    pub(crate) fn scalars<'a>(
        &mut self,
        step: u64,
        numbers: impl Iterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        self.record(&scalars(seconds(), step, numbers))
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        Ok(self.file.write_all(&framed(event))?)
    }
}

/// Since 1970.
fn seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |duration| duration.as_secs_f64())
}

/// A record: length, checksum of the length, bytes, checksum of the bytes.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(checksum(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(checksum(bytes).to_le_bytes());
    record
}

/// The checksum of TFRecord: CRC-32C, turned and shifted, since records may hold checksums.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC with Castagnoli's polynomial, bit by bit: records have some dozens of bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut rest = !0_u32;
    for byte in bytes {
        rest ^= u32::from(*byte);
        for _ in 0..8 {
            let low = rest & 1;
            rest = (rest >> 1) ^ (low * 0x82f6_3b78);
        }
    }
    !rest
}

/// `Event { wall_time = 1, step = 2 }`
fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = vec![(1 << 3) | 1];
    event.extend(wall_time.to_le_bytes());
    event.push(2 << 3);
    varint(step, &mut event);
    event
}

/// `Event { file_version = 3 }`
fn version() -> Vec<u8> {
    let mut event = event(seconds(), 0);
    field(3, b"brain.Event:2", &mut event);
    event
}

/// `Event { session_log = 7 { status = 1: START } }`
fn session_start(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = event(wall_time, step);
    field(7, &[1 << 3, 1], &mut event);
    event
}

/// `Event { summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`
fn scalars<'a>(
    wall_time: f64,
    step: u64,
    numbers: impl Iterator<Item = (&'a str, f64)>,
) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in numbers {
        let mut value = Vec::new();
        field(1, tag.as_bytes(), &mut value);
        value.push((2 << 3) | 5);
        #[expect(clippy::cast_possible_truncation, reason = "as the format has it")]
        value.extend((number as f32).to_le_bytes());
        field(1, &value, &mut summary);
    }
    let mut event = event(wall_time, step);
    field(5, &summary, &mut event);
    event
}

/// A field of bytes, text or a message.
fn field(number: u8, bytes: &[u8], message: &mut Vec<u8>) {
    message.push((number << 3) | 2);
    varint(bytes.len() as u64, message);
    message.extend(bytes);
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn varint(mut number: u64, message: &mut Vec<u8>) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            message.push(low & 0x7f);
            return;
        }
        message.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        retort_files::hex(bytes)
    }

    /// As TensorBoard 2.21's own writer has it.
    #[test]
    fn records_are_tensorboards() {
        let numbers = [("loss", 0.25), ("dev_ndcg@10", 0.5)].into_iter();
        assert_eq!(
            hex(&framed(&scalars(1.5, 300, numbers))),
            "2f000000000000006d5d1d5009000000000000f83f10ac022a210a0b0a046c6f7373150000803e0a120a0b\
             6465765f6e646367403130150000003f6930ace0"
        );
        assert_eq!(
            hex(&framed(&session_start(1.5, 76))),
            "0f000000000000006d532b0909000000000000f83f104c3a0208016c13fc29"
        );
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
