//! Tensors as the copies of tiles know them.

use std::sync::{Arc, Mutex};

static MAPS: Mutex<Vec<Arc<Map>>> = Mutex::new(Vec::new());

/// A tensor, its first dimension the one whose elements lie together.
pub struct Map {
    pub element: usize,
    address: u64,
    sizes: Vec<u64>,
    /// In bytes, of all dimensions but the first.
    strides: Vec<u64>,
    tile: Vec<u32>,
    /// How many bytes of rows are swizzled: 0, 32, 64 or 128.
    swizzle: u64,
}

impl Map {
    /// As a driver takes it, or none.
    pub fn noted(
        element: usize,
        address: u64,
        sizes: &[u64],
        strides: &[u64],
        tile: &[u32],
        swizzle: u32,
    ) -> Option<u64> {
        let swizzle = match swizzle {
            0 => 0,
            1..=3 => 16 << swizzle,
            _ => return None,
        };
        let inner = tile[0] as usize * element;
        let fits = address.is_multiple_of(16)
            && strides.iter().all(|stride| stride % 16 == 0 && *stride < 1 << 40)
            && sizes.iter().all(|size| (1..=1 << 32).contains(size))
            && tile.iter().all(|side| (1..=256).contains(side))
            && inner.is_multiple_of(16)
            && (swizzle == 0 || inner as u64 <= swizzle);
        if !fits {
            return None;
        }
        let map =
            Self { element, address, sizes: sizes.to_vec(), strides: strides.to_vec(), tile: tile.to_vec(), swizzle };
        let mut maps = MAPS.lock().unwrap();
        maps.push(Arc::new(map));
        Some(maps.len() as u64)
    }

    pub fn rank(&self) -> usize {
        self.sizes.len()
    }

    /// Of a tile.
    pub fn bytes(&self) -> usize {
        self.tile.iter().product::<u32>() as usize * self.element
    }

    /// Of each 16 bytes of the tile at a place: where they go, from `begin` on, where they are, and how many
    /// of them are there.
    pub fn tile(&self, begin: u64, place: &[i64]) -> Vec<(u64, u64, usize)> {
        let piece = 16 / self.element;
        (0..self.bytes() / 16)
            .map(|number| {
                let mut rest = number * piece;
                let (mut from, mut there) = (self.address as i64, piece as i64);
                for (side, first) in place.iter().enumerate() {
                    let at = first + (rest % self.tile[side] as usize) as i64;
                    rest /= self.tile[side] as usize;
                    let left = self.sizes[side] as i64 - at;
                    if side == 0 {
                        from += at * self.element as i64;
                        there = if at < 0 { 0 } else { left.clamp(0, there) };
                    } else {
                        from += at * self.strides[side - 1] as i64;
                        there = if at < 0 || left <= 0 { 0 } else { there };
                    }
                }
                let to = begin + (number * 16) as u64;
                // Which 16 of a row they are changes with the row.
                let bits = match self.swizzle {
                    128 => to >> 3 & 0x70,
                    64 => to >> 3 & 0x30,
                    32 => to >> 3 & 0x10,
                    _ => 0,
                };
                (to ^ bits, from as u64, there as usize * self.element)
            })
            .collect()
    }
}

pub fn found(number: u64) -> Option<Arc<Map>> {
    let place = usize::try_from(number).ok()?.checked_sub(1)?;
    MAPS.lock().unwrap().get(place).cloned()
}
