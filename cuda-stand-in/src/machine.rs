//! Runs a kernel, block by block: the lanes of a warp that are at the same instruction together, the others
//! when it is their turn, those that are behind first.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::memory;
use crate::number;
use crate::ptx::{
    Atomic, Compare, Instruction, Kernel, LOCAL, Op, Operand, PARAMETERS, SHARED, Shuffle, Space, Special, Two, Ty,
    Vote, Which,
};
use crate::tensor;

/// A start of a kernel.
pub struct Start<'a> {
    pub kernel: &'a Kernel,
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    pub dynamic: usize,
    pub parameters: Vec<u8>,
    /// Whether two threads that meet at a place without a barrier between them are looked for.
    pub races: bool,
}

/// Instructions of a block's warps that are taken for endless.
const MOST: u64 = 2_000_000_000;

/// Numbers of a warp, one a lane.
type Lanes = [u64; 32];

static ATOMIC: Mutex<()> = Mutex::new(());

/// Runs it, or says where it went wrong. Blocks run side by side where nobody looks for races.
pub fn run(start: &Start) -> Result<(), String> {
    let count = start.blocks.iter().map(|side| u64::from(*side)).product::<u64>();
    let next = AtomicU64::new(0);
    let work = || {
        let mut block = Block::new(start);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            if let Err(why) = block.run(number) {
                next.store(count, Ordering::Relaxed);
                return Err(why);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if start.races || count == 1 || cores == 1 || start.threads.iter().product::<u32>() as u64 * count < 4096 {
        return work();
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..cores).map(|_| scope.spawn(work)).collect();
        let mine = work();
        workers.into_iter().fold(mine, |all, worker| all.and(worker.join().unwrap()))
    })
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Waits {
    #[default]
    No,
    AtBarrier,
    ForWarp,
    Ended,
}

struct Warp {
    number: usize,
    registers: Vec<Lanes>,
    at: [u32; 32],
    waits: [Waits; 32],
    /// Lanes that asked for what was not there yet: others go before them.
    asked: u32,
    /// How many lanes it has.
    lanes: usize,
}

/// Who wrote and who read a place last: block, thread and epoch.
#[derive(Clone, Copy, Default)]
struct Touched {
    writer: Option<(u32, u32, u32)>,
    reader: Option<(u32, u32, u32)>,
    /// Several of the epoch read.
    several: bool,
    /// Several blocks did.
    blocks: bool,
    atomic: bool,
    /// Read as what no thread writes.
    constant: bool,
}

type Places = HashMap<u64, Touched, std::hash::BuildHasherDefault<Quick>>;

#[derive(Default)]
struct Quick(u64);

impl std::hash::Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, value: u64) {
        self.0 = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    }
}

/// All that the threads of a block share.
struct Common<'a> {
    start: &'a Start<'a>,
    at: [u32; 3],
    number: u32,
    shared: Vec<u8>,
    /// Of each thread.
    local: Vec<u8>,
    epoch: u32,
    seen_global: Places,
    seen_shared: Places,
}

struct Block<'a> {
    common: Common<'a>,
    warps: Vec<Warp>,
    left: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Touch {
    Read,
    ReadConstant,
    Write,
    Atomic,
}

impl<'a> Block<'a> {
    fn new(start: &'a Start<'a>) -> Self {
        let threads = start.threads.iter().product::<u32>() as usize;
        let warps = (0..threads.div_ceil(32)).map(|number| Warp {
            number,
            registers: vec![[0xdead_beef_dead_beef; 32]; start.kernel.registers],
            at: [0; 32],
            waits: [Waits::No; 32],
            asked: 0,
            lanes: (threads - number * 32).min(32),
        });
        Self {
            warps: warps.collect(),
            common: Common {
                start,
                at: [0; 3],
                number: 0,
                shared: Vec::new(),
                local: vec![0xff; threads * start.kernel.local],
                epoch: 1,
                seen_global: Places::default(),
                seen_shared: Places::default(),
            },
            left: MOST,
        }
    }

    fn run(&mut self, number: u64) -> Result<(), String> {
        let start = self.common.start;
        let [x, y, _] = start.blocks.map(u64::from);
        self.common.at = [(number % x) as u32, (number / x % y) as u32, (number / x / y) as u32];
        self.common.number = number as u32;
        self.common.epoch += 1;
        self.common.shared.clear();
        self.common.shared.resize(start.kernel.shared + start.dynamic, 0xff);
        self.common.seen_shared.clear();
        self.left = MOST;
        for warp in &mut self.warps {
            warp.at = [0; 32];
            warp.waits = [Waits::Ended; 32];
            warp.waits[..warp.lanes].fill(Waits::No);
        }
        loop {
            let mut goes_on = false;
            for warp in &mut self.warps {
                goes_on |= warp.go(&mut self.common, &mut self.left)?;
            }
            if goes_on {
                continue;
            }
            // All have ended or are at a barrier, which is known by its number.
            let number = |at: u32| start.kernel.instructions[at as usize].of.first().copied();
            let mut place = None;
            let mut ended = 0;
            for warp in &self.warps {
                for lane in 0..warp.lanes {
                    match warp.waits[lane] {
                        Waits::Ended => ended += 1,
                        _ if place.is_none() => place = Some(number(warp.at[lane])),
                        _ if place == Some(number(warp.at[lane])) => {}
                        _ => return Err("threads are at two barriers".into()),
                    }
                }
            }
            if place.is_none() {
                return Ok(());
            }
            if ended > 0 && start.races {
                return Err(format!("a barrier that {ended} threads do not reach"));
            }
            self.common.epoch += 1;
            for warp in &mut self.warps {
                for lane in 0..warp.lanes {
                    if warp.waits[lane] == Waits::AtBarrier {
                        warp.waits[lane] = Waits::No;
                        warp.at[lane] += 1;
                    }
                }
            }
        }
    }
}

impl Warp {
    /// Until all lanes have ended or are at a barrier, or until none goes on before another warp did: then
    /// it says so.
    fn go(&mut self, common: &mut Common, left: &mut u64) -> Result<bool, String> {
        let kernel = common.start.kernel;
        self.asked = 0;
        loop {
            // Those that are behind.
            let mut at = u32::MAX;
            for lane in 0..self.lanes {
                if self.waits[lane] == Waits::No && self.asked >> lane & 1 == 0 {
                    at = at.min(self.at[lane]);
                }
            }
            if at == u32::MAX {
                if self.together(common)? {
                    continue;
                }
                return Ok(self.asked != 0);
            }
            let mut mask = 0u32;
            // Where the next of the others are.
            let mut meets = u32::MAX;
            for lane in 0..self.lanes {
                if self.waits[lane] == Waits::No && self.asked >> lane & 1 == 0 {
                    if self.at[lane] == at {
                        mask |= 1 << lane;
                    } else {
                        meets = meets.min(self.at[lane]);
                    }
                }
            }
            loop {
                let instruction = &kernel.instructions[at as usize];
                *left = left.checked_sub(1).ok_or("it does not end")?;
                let mut active = mask;
                if let Some((register, is_not)) = instruction.guard {
                    let guard = &self.registers[register as usize];
                    for lane in 0..32 {
                        if (guard[lane] & 1 == 1) == is_not {
                            active &= !(1 << lane);
                        }
                    }
                }
                let stop = match &instruction.op {
                    _ if active == 0 => false,
                    Op::Branch(target) => {
                        for lane in lanes(mask) {
                            self.at[lane] = if active >> lane & 1 == 1 { *target as u32 } else { at + 1 };
                        }
                        break;
                    }
                    Op::HasPassed { by_parity } => {
                        let passed = self.has_passed(common, instruction, active, *by_parity)?;
                        let waiting = active & !passed;
                        if waiting != 0 {
                            self.asked |= waiting;
                            for lane in lanes(mask) {
                                self.at[lane] = at + 1;
                            }
                            break;
                        }
                        false
                    }
                    Op::BranchTo(targets) => {
                        let which = self.get(common, instruction.of[0]);
                        for lane in lanes(mask) {
                            self.at[lane] = if active >> lane & 1 == 1 {
                                *targets.get(which[lane] as usize).ok_or("a jump to nowhere")? as u32
                            } else {
                                at + 1
                            };
                        }
                        break;
                    }
                    Op::Exit => {
                        for lane in lanes(active) {
                            self.waits[lane] = Waits::Ended;
                        }
                        true
                    }
                    Op::Trap => return Err("a trap".into()),
                    Op::Barrier => {
                        for lane in lanes(active) {
                            self.waits[lane] = Waits::AtBarrier;
                        }
                        true
                    }
                    op if op.is_of_warp() => {
                        for lane in lanes(active) {
                            self.waits[lane] = Waits::ForWarp;
                        }
                        true
                    }
                    _ => {
                        self.step(common, instruction, active).map_err(|why| {
                            format!("{why}: block {:?}, warp {}, {}", common.at, self.number, instruction.text)
                        })?;
                        false
                    }
                };
                if stop {
                    for lane in lanes(mask) {
                        self.at[lane] = if active >> lane & 1 == 1 { at } else { at + 1 };
                    }
                    break;
                }
                at += 1;
                if at == meets {
                    for lane in lanes(mask) {
                        self.at[lane] = at;
                    }
                    break;
                }
            }
        }
    }

    fn get(&self, common: &Common, operand: Operand) -> Lanes {
        match operand {
            Operand::Register(register) => self.registers[register as usize],
            Operand::Not(register) => self.registers[register as usize].map(|bits| bits & 1 ^ 1),
            Operand::Value(value) => [value; 32],
            Operand::Special(special, side) => std::array::from_fn(|lane| {
                let threads = common.start.threads;
                let number = (self.number * 32 + lane) as u32;
                u64::from(match special {
                    Special::Thread => match side {
                        0 => number % threads[0],
                        1 => number / threads[0] % threads[1],
                        _ => number / threads[0] / threads[1],
                    },
                    Special::Threads => threads[side],
                    Special::Block => common.at[side],
                    Special::Blocks => common.start.blocks[side],
                    Special::Lane => lane as u32,
                    Special::Warp => self.number as u32,
                    Special::LanesBelow => (1 << lane) - 1,
                    Special::Clock => {
                        static CLOCK: AtomicUsize = AtomicUsize::new(0);
                        CLOCK.fetch_add(1, Ordering::Relaxed) as u32
                    }
                    Special::Zero => 0,
                })
            }),
            Operand::Address(register, offset) => {
                let base = register.map_or([0; 32], |register| self.registers[register as usize]);
                base.map(|base| base.wrapping_add(offset as u64))
            }
            Operand::Sink => [0; 32],
        }
    }

    fn set(&mut self, operand: Operand, values: &Lanes, active: u32) {
        if let Operand::Register(register) = operand {
            let target = &mut self.registers[register as usize];
            if active == u32::MAX {
                *target = *values;
            } else {
                for lane in lanes(active) {
                    target[lane] = values[lane];
                }
            }
        }
    }

    fn step(&mut self, common: &mut Common, instruction: &Instruction, active: u32) -> Result<(), String> {
        let ty = instruction.ty;
        let (to, of) = (&instruction.to, &instruction.of);
        let get = |place: usize| self.get(common, of[place]);
        let mut values: Lanes = [0; 32];
        match &instruction.op {
            Op::Nothing => return Ok(()),
            Op::Move => {
                // Halves to a whole, a whole to halves, or one to one.
                if of.len() > 1 {
                    let width = ty.bits() / of.len() as u32;
                    for (place, part) in of.iter().enumerate() {
                        let part = self.get(common, *part);
                        for lane in 0..32 {
                            values[lane] |= number::cut(part[lane], width) << (width * place as u32);
                        }
                    }
                } else if to.len() > 1 {
                    let width = ty.bits() / to.len() as u32;
                    let whole = get(0);
                    for (place, part) in to.iter().enumerate() {
                        let values = whole.map(|whole| number::cut(whole >> (width * place as u32), width));
                        self.set(*part, &values, active);
                    }
                    return Ok(());
                } else {
                    let width = ty.bits();
                    values = get(0).map(|bits| number::cut(bits, width));
                }
            }
            Op::Load { space, coherent } => {
                let bytes = ty.bits() as usize / 8;
                let addresses = get(0);
                let touch = if *coherent { Touch::Read } else { Touch::ReadConstant };
                let mut found = [[0u64; 32]; 8];
                for lane in lanes(active) {
                    let source = self.place(common, lane, *space, addresses[lane], bytes * to.len(), touch)?;
                    for (place, values) in found[..to.len()].iter_mut().enumerate() {
                        // SAFETY: `place` found these bytes to be there.
                        let bits = unsafe { taken(source.add(place * bytes), bytes) };
                        values[lane] =
                            if matches!(ty, Ty::S(_)) { number::signed(bits, ty.bits()) as u64 } else { bits };
                    }
                }
                for (part, values) in to.iter().zip(&found) {
                    self.set(*part, values, active);
                }
                return Ok(());
            }
            Op::Store { space } => {
                let bytes = ty.bits() as usize / 8;
                let addresses = get(0);
                let mut stored = [[0u64; 32]; 8];
                for (values, part) in stored.iter_mut().zip(&of[1..]) {
                    *values = self.get(common, *part);
                }
                for lane in lanes(active) {
                    let target =
                        self.place(common, lane, *space, addresses[lane], bytes * (of.len() - 1), Touch::Write)?;
                    for (place, values) in stored[..of.len() - 1].iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { put(target.add(place * bytes), bytes, values[lane]) };
                    }
                }
                return Ok(());
            }
            Op::ToGeneric(space) => {
                let begin = begin(*space);
                values = get(0).map(|address| address.wrapping_add(begin));
            }
            Op::FromGeneric(space) => {
                let begin = begin(*space);
                values = get(0).map(|address| address.wrapping_sub(begin));
            }
            Op::IsIn(space) => {
                let begin = begin(*space);
                values = get(0).map(|address| u64::from(address >> 60 == begin >> 60));
            }
            Op::Convert { round, whole, saturate, relu } => {
                let convert = |bits, to| {
                    let value = number::convert(to, instruction.from, bits, *round, *whole, *saturate);
                    if *relu && number::float(to, value) < 0.0 { 0 } else { value }
                };
                let first = get(0);
                // The first is the upper half.
                let half = match ty {
                    Ty::F16x2 => Some(Ty::F16),
                    Ty::BF16x2 => Some(Ty::BF16),
                    _ => None,
                };
                if let Some(half) = half {
                    let second = get(1);
                    for lane in 0..32 {
                        values[lane] = convert(first[lane], half) << 16 | convert(second[lane], half);
                    }
                } else {
                    values = first.map(|bits| convert(bits, ty));
                }
            }
            Op::Unary(what) => values = get(0).map(|bits| number::one(*what, ty, bits)),
            Op::Binary { two, nan, saturate } => {
                let (one, other) = (get(0), get(1));
                let is_plain = !saturate && of.len() == 2;
                macro_rules! each {
                    ($lane:ident, $value:expr) => {
                        for $lane in 0..32 {
                            values[$lane] = $value;
                        }
                    };
                }
                let float = |bits: u64| f32::from_bits(bits as u32);
                match (two, ty) {
                    (Two::Add, Ty::F32) if is_plain => {
                        each!(lane, u64::from((float(one[lane]) + float(other[lane])).to_bits()))
                    }
                    (Two::Mul, Ty::F32) if is_plain => {
                        each!(lane, u64::from((float(one[lane]) * float(other[lane])).to_bits()))
                    }
                    (Two::Sub, Ty::F32) if is_plain => {
                        each!(lane, u64::from((float(one[lane]) - float(other[lane])).to_bits()))
                    }
                    (Two::Add, Ty::B(32) | Ty::U(32) | Ty::S(32)) if is_plain => {
                        each!(lane, u64::from((one[lane] as u32).wrapping_add(other[lane] as u32)))
                    }
                    (Two::Add, Ty::B(64) | Ty::U(64) | Ty::S(64)) if is_plain => {
                        each!(lane, one[lane].wrapping_add(other[lane]))
                    }
                    (Two::Mul, Ty::B(32) | Ty::U(32) | Ty::S(32)) if is_plain => {
                        each!(lane, u64::from((one[lane] as u32).wrapping_mul(other[lane] as u32)))
                    }
                    (Two::MulWide, Ty::U(32)) => {
                        each!(lane, u64::from(one[lane] as u32) * u64::from(other[lane] as u32))
                    }
                    (Two::And, Ty::B(32)) => each!(lane, one[lane] & other[lane] & 0xffff_ffff),
                    (Two::Or, Ty::B(32)) => each!(lane, (one[lane] | other[lane]) & 0xffff_ffff),
                    _ => each!(lane, number::two(*two, ty, one[lane], other[lane], *nan, *saturate)),
                }
                if of.len() == 3 {
                    let third = get(2);
                    for lane in 0..32 {
                        values[lane] = number::two(*two, ty, values[lane], third[lane], *nan, *saturate);
                    }
                }
            }
            Op::MulAddTo(round) => {
                let float = |bits: u64| f64::from(f32::from_bits(bits as u32));
                let (one, other, third) = (get(0), get(1), get(2));
                for lane in 0..32 {
                    let value = float(one[lane]).mul_add(float(other[lane]), float(third[lane]));
                    values[lane] = u64::from(number::directed(value, *round).to_bits());
                }
            }
            Op::MulAdd(what, relu) => {
                let (one, other, third) = (get(0), get(1), get(2));
                if ty == Ty::F32 && !relu {
                    let float = |bits: u64| f32::from_bits(bits as u32);
                    for lane in 0..32 {
                        let value = float(one[lane]).mul_add(float(other[lane]), float(third[lane]));
                        values[lane] = u64::from(value.to_bits());
                    }
                } else {
                    for lane in 0..32 {
                        values[lane] = number::mul_add(*what, ty, one[lane], other[lane], third[lane], *relu);
                    }
                }
            }
            Op::Extract => {
                let (of_bits, begins, lengths) = (get(0), get(1), get(2));
                let width = ty.bits();
                for lane in 0..32 {
                    let (begin, length) = (begins[lane] as u32 & 255, lengths[lane] as u32 & 255);
                    let shifted = if begin >= width { 0 } else { number::cut(of_bits[lane], width) >> begin };
                    let bits = number::cut(shifted, length.min(64));
                    values[lane] = if matches!(ty, Ty::S(_)) && length > 0 && begin + length <= width {
                        number::cut(number::signed(bits, length) as u64, width)
                    } else {
                        bits
                    };
                }
            }
            Op::Insert => {
                let (parts, wholes, begins, lengths) = (get(0), get(1), get(2), get(3));
                for lane in 0..32 {
                    let (begin, length) = (begins[lane] as u32 & 255, lengths[lane] as u32 & 255);
                    let mask = if begin >= 64 { 0 } else { number::cut(u64::MAX, length.min(64)) << begin };
                    let part = if begin >= 64 { 0 } else { parts[lane] << begin };
                    values[lane] = number::cut((part & mask) | (wholes[lane] & !mask), ty.bits());
                }
            }
            Op::Permute => {
                let (low, high, choices) = (get(0), get(1), get(2));
                for lane in 0..32 {
                    let bytes = (low[lane] & 0xffff_ffff) | high[lane] << 32;
                    values[lane] = (0..4).fold(0, |all, place| {
                        let pick = choices[lane] >> (4 * place) & 15;
                        let byte = bytes >> (8 * (pick & 7)) & 255;
                        let byte = if pick & 8 == 0 { byte } else { (byte >> 7) * 255 };
                        all | byte << (8 * place)
                    });
                }
            }
            Op::Logic(table) => {
                let (one, other, third) = (get(0), get(1), get(2));
                for lane in 0..32 {
                    values[lane] = (0..32).fold(0, |all, bit| {
                        let pick =
                            (one[lane] >> bit & 1) << 2 | (other[lane] >> bit & 1) << 1 | (third[lane] >> bit & 1);
                        all | u64::from(table >> pick & 1) << bit
                    });
                }
            }
            Op::Funnel { left, wraps } => {
                let (low, high, by) = (get(0), get(1), get(2));
                for lane in 0..32 {
                    let both = (low[lane] & 0xffff_ffff) | high[lane] << 32;
                    let by = if *wraps { by[lane] & 31 } else { (by[lane] & 0xffff_ffff).min(32) };
                    values[lane] = number::cut(if *left { both << by >> 32 } else { both >> by }, 32);
                }
            }
            Op::Set { compare, unordered, with } => {
                let from = instruction.from;
                let (one, other) = (get(0), get(1));
                let third = if with.is_some() { get(2) } else { [0; 32] };
                for lane in 0..32 {
                    let mut holds = match (compare, from) {
                        (Compare::Lt, Ty::U(32)) => (one[lane] as u32) < other[lane] as u32,
                        (Compare::Ge, Ty::U(32)) => (one[lane] as u32) >= other[lane] as u32,
                        (Compare::Eq, Ty::B(32)) => one[lane] as u32 == other[lane] as u32,
                        (Compare::Ne, Ty::B(32)) => one[lane] as u32 != other[lane] as u32,
                        _ => number::compares(*compare, *unordered, from, one[lane], other[lane]),
                    };
                    if let Some(with) = with {
                        let other = third[lane] & 1 == 1;
                        holds = match with {
                            Two::And => holds && other,
                            Two::Or => holds || other,
                            _ => holds != other,
                        };
                    }
                    values[lane] = u64::from(holds);
                }
            }
            Op::Select => {
                let (one, other, which) = (get(0), get(1), get(2));
                for lane in 0..32 {
                    values[lane] = if which[lane] & 1 == 1 { one[lane] } else { other[lane] };
                }
            }
            Op::Atomic { space, what, returns } => {
                let _alone = ATOMIC.lock().unwrap();
                let bytes = ty.bits() as usize / 8;
                let addresses = get(0);
                let count = if matches!(what, Atomic::CompareExchange) { 1 } else { of.len() - 1 };
                let operands: Vec<Lanes> = of[1..].iter().map(|part| self.get(common, *part)).collect();
                let mut found = vec![[0u64; 32]; count];
                for lane in lanes(active) {
                    let target = self.place(common, lane, *space, addresses[lane], bytes * count, Touch::Atomic)?;
                    for place in 0..count {
                        // SAFETY: `place` found these bytes to be there.
                        let before = unsafe { taken(target.add(place * bytes), bytes) };
                        let operand = operands[place][lane];
                        let after = match what {
                            Atomic::Add => number::two(Two::Add, ty, before, operand, false, false),
                            Atomic::Min => number::two(Two::Min, ty, before, operand, false, false),
                            Atomic::Max => number::two(Two::Max, ty, before, operand, false, false),
                            Atomic::And => before & operand,
                            Atomic::Or => before | operand,
                            Atomic::Xor => before ^ operand,
                            Atomic::Exchange => operand,
                            Atomic::CompareExchange => {
                                if before == number::cut(operand, ty.bits()) {
                                    operands[1][lane]
                                } else {
                                    before
                                }
                            }
                        };
                        // SAFETY: as above.
                        unsafe { put(target.add(place * bytes), bytes, after) };
                        found[place][lane] = before;
                    }
                }
                if *returns {
                    for (part, values) in to.iter().zip(&found) {
                        self.set(*part, values, active);
                    }
                }
                return Ok(());
            }
            Op::Copy => {
                let Operand::Value(bytes) = of[2] else {
                    return Err("a copy of unknown size".into());
                };
                let bytes = bytes as usize;
                // How many of them there are; the others become zeros.
                let there = of.get(3).map_or([bytes as u64; 32], |operand| self.get(common, *operand));
                let (targets, sources) = (get(0), get(1));
                for lane in lanes(active) {
                    let there = (there[lane] as u32 as usize).min(bytes);
                    let mut copied = [0u8; 16];
                    if there > 0 {
                        if sources[lane] % bytes as u64 != 0 {
                            return Err(format!("a misaligned address, {:x} of {bytes} bytes", sources[lane]));
                        }
                        for part in 0..there {
                            let source =
                                self.place(common, lane, Space::Global, sources[lane] + part as u64, 1, Touch::Read)?;
                            // SAFETY: as above.
                            copied[part] = unsafe { *source };
                        }
                    }
                    let target = self.place(common, lane, Space::Shared, targets[lane], bytes, Touch::Write)?;
                    // SAFETY: as above.
                    unsafe { std::ptr::copy_nonoverlapping(copied.as_ptr(), target, bytes) };
                }
                return Ok(());
            }
            Op::Await => {
                let (addresses, counts) = (get(0), get(1));
                for lane in lanes(active) {
                    let target = self.place(common, lane, Space::Shared, addresses[lane], 8, Touch::Atomic)?;
                    let barrier =
                        Barrier { expected: counts[lane] as u32, pending: counts[lane] as u32, ..Barrier::default() };
                    // SAFETY: `place` found these bytes to be there.
                    unsafe { put(target, 8, barrier.bits()) };
                }
                return Ok(());
            }
            Op::Arrive => {
                let addresses = get(0);
                let counts = of.get(1).map_or([1; 32], |count| self.get(common, *count));
                for lane in lanes(active) {
                    let count = counts[lane] as u32;
                    values[lane] = self.change(common, lane, addresses[lane], |barrier| {
                        barrier.pending = barrier.pending.checked_sub(count).ok_or("a barrier that too many reach")?;
                        Ok(())
                    })?;
                }
            }
            Op::Expect => {
                let (addresses, counts) = (get(0), get(1));
                for lane in lanes(active) {
                    let bytes = counts[lane] as i32;
                    self.change(common, lane, addresses[lane], |barrier| {
                        barrier.bytes += bytes;
                        Ok(())
                    })?;
                }
                return Ok(());
            }
            Op::Tile { rank } => {
                let (targets, maps) = (get(0), get(1));
                let places: Vec<Lanes> = of[2..2 + rank].iter().map(|part| self.get(common, *part)).collect();
                let barriers = get(2 + rank);
                for lane in lanes(active) {
                    let map = self.place(common, lane, Space::Generic, maps[lane], 64, Touch::Read)?;
                    // SAFETY: as above.
                    let map = tensor::found(unsafe { taken(map, 8) }).ok_or("what is no map of a tensor")?;
                    if map.rank() != *rank {
                        return Err(format!("a map of {} dimensions", map.rank()));
                    }
                    if targets[lane] % 128 != 0 {
                        return Err(format!("a misaligned tile, {:x}", targets[lane]));
                    }
                    let place: Vec<i64> = places.iter().map(|side| i64::from(side[lane] as i32)).collect();
                    if place[0] < 0 {
                        return Err("a tile that begins before its rows".into());
                    }
                    for (to, from, bytes) in map.tile(targets[lane], &place) {
                        let mut copied = [0u8; 16];
                        if bytes > 0 {
                            let source = held(from, bytes)?;
                            // SAFETY: as above.
                            unsafe { std::ptr::copy_nonoverlapping(source, copied.as_mut_ptr(), bytes) };
                        }
                        let target = self.place(common, lane, Space::Shared, to, 16, Touch::Atomic)?;
                        // SAFETY: as above.
                        unsafe { std::ptr::copy_nonoverlapping(copied.as_ptr(), target, 16) };
                    }
                    let bytes = map.bytes() as i32;
                    self.change(common, lane, barriers[lane], |barrier| {
                        barrier.bytes -= bytes;
                        Ok(())
                    })?;
                }
                return Ok(());
            }
            Op::PutTile { rank } => {
                let maps = get(0);
                let places: Vec<Lanes> = of[1..1 + rank].iter().map(|part| self.get(common, *part)).collect();
                let sources = get(1 + rank);
                for lane in lanes(active) {
                    let map = self.place(common, lane, Space::Generic, maps[lane], 64, Touch::Read)?;
                    // SAFETY: as above.
                    let map = tensor::found(unsafe { taken(map, 8) }).ok_or("what is no map of a tensor")?;
                    let place: Vec<i64> = places.iter().map(|side| i64::from(side[lane] as i32)).collect();
                    for (from, to, bytes) in map.tile(sources[lane], &place) {
                        if bytes > 0 {
                            let source = self.place(common, lane, Space::Shared, from, 16, Touch::Read)?;
                            let target = held(to, bytes)?;
                            // SAFETY: as above.
                            unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) };
                        }
                    }
                }
                return Ok(());
            }
            other => return Err(format!("{other:?} is not of a thread")),
        }
        if let Some(first) = to.first() {
            self.set(*first, &values, active);
        }
        if let (Op::Set { .. }, [_, other]) = (&instruction.op, to.as_slice()) {
            self.set(*other, &values.map(|holds| holds ^ 1), active);
        }
        Ok(())
    }

    /// Changes a barrier in shared memory, which begins anew where nobody is missing: the phase it was in.
    fn change(
        &self,
        common: &mut Common,
        lane: usize,
        address: u64,
        change: impl FnOnce(&mut Barrier) -> Result<(), String>,
    ) -> Result<u64, String> {
        let target = self.place(common, lane, Space::Shared, address, 8, Touch::Atomic)?;
        // SAFETY: `place` found these bytes to be there.
        let mut barrier = Barrier::of(unsafe { taken(target, 8) });
        let phase = barrier.phase;
        change(&mut barrier)?;
        if barrier.pending == 0 && barrier.bytes == 0 {
            barrier.phase ^= 1;
            barrier.pending = barrier.expected;
        }
        // SAFETY: as above.
        unsafe { put(target, 8, barrier.bits()) };
        Ok(u64::from(phase))
    }

    /// The lanes whose barrier has passed the phase that they ask for.
    fn has_passed(
        &mut self,
        common: &mut Common,
        instruction: &Instruction,
        active: u32,
        by_parity: bool,
    ) -> Result<u32, String> {
        let addresses = self.get(common, instruction.of[0]);
        let phases = self.get(common, instruction.of[1]);
        let mut passed = 0u32;
        for lane in lanes(active) {
            let source = self.place(common, lane, Space::Shared, addresses[lane], 8, Touch::Atomic)?;
            // SAFETY: as above.
            let barrier = Barrier::of(unsafe { taken(source, 8) });
            let asked = if by_parity { phases[lane] as u32 & 1 } else { phases[lane] as u32 };
            passed |= u32::from(barrier.phase != asked) << lane;
        }
        self.set(instruction.to[0], &std::array::from_fn(|lane| u64::from(passed >> lane & 1)), active);
        Ok(passed)
    }

    /// Where an address is, if all its bytes are.
    fn place(
        &self,
        common: &mut Common,
        lane: usize,
        space: Space,
        address: u64,
        bytes: usize,
        touch: Touch,
    ) -> Result<*mut u8, String> {
        if !address.is_multiple_of(bytes as u64) {
            return Err(format!("a misaligned address, {address:x} of {bytes} bytes"));
        }
        let thread = self.number * 32 + lane;
        let (space, address) = match space {
            Space::Generic => match address >> 60 {
                1 => (Space::Shared, address - SHARED),
                2 => (Space::Local, address - LOCAL),
                3 => (Space::Parameter, address - PARAMETERS),
                _ => (Space::Global, address),
            },
            space => (space, address),
        };
        let within = |memory: *mut u8, length: usize, address: u64| {
            if (address as usize).checked_add(bytes).is_some_and(|end| end <= length) {
                // SAFETY: it is within.
                Ok(unsafe { memory.add(address as usize) })
            } else {
                Err(format!("{bytes} bytes at {address} of {length} in {space:?}"))
            }
        };
        match space {
            Space::Shared => {
                if common.start.races {
                    common.meets(thread, false, address, bytes, touch)?;
                }
                within(common.shared.as_mut_ptr(), common.shared.len(), address)
            }
            Space::Local => {
                let size = common.start.kernel.local;
                let local = &mut common.local[thread * size..][..size];
                within(local.as_mut_ptr(), size, address)
            }
            Space::Parameter if matches!(touch, Touch::Write | Touch::Atomic) => Err("parameters are written".into()),
            Space::Parameter => {
                let parameters = &common.start.parameters;
                within(parameters.as_ptr().cast_mut(), parameters.len(), address)
            }
            _ => {
                if !memory::has(address, bytes) {
                    return Err(format!("an illegal address: {bytes} bytes at {address:x}"));
                }
                if common.start.races {
                    common.meets(thread, true, address, bytes, touch)?;
                }
                Ok(address as *mut u8)
            }
        }
    }

    /// What lanes do together, where all that it takes are there.
    fn together(&mut self, common: &mut Common) -> Result<bool, String> {
        let mut places: Vec<u32> =
            (0..self.lanes).filter(|lane| self.waits[*lane] == Waits::ForWarp).map(|lane| self.at[lane]).collect();
        if places.is_empty() {
            return Ok(false);
        }
        places.sort_unstable();
        places.dedup();
        let kernel = common.start.kernel;
        // Who is active is asked last: others may yet come.
        places.sort_by_key(|place| matches!(kernel.instructions[*place as usize].op, Op::Active | Op::Elect));
        for place in &places {
            let instruction = &kernel.instructions[*place as usize];
            let here = (0..self.lanes)
                .filter(|lane| self.waits[*lane] == Waits::ForWarp && self.at[*lane] == *place)
                .fold(0u32, |mask, lane| mask | 1 << lane);
            let first = here.trailing_zeros() as usize;
            let wanted = match instruction.op {
                Op::Active => here,
                Op::Shuffle(_) | Op::Vote(_) | Op::Reduce(_) | Op::BarrierOfWarp | Op::Elect => {
                    let last = *instruction.of.last().ok_or("no members")?;
                    self.get(common, last)[first] as u32
                }
                _ => u32::MAX,
            };
            let ended =
                (0..32).filter(|lane| self.waits[*lane] == Waits::Ended).fold(0u32, |mask, lane| mask | 1 << lane);
            if wanted & !here & !ended != 0 {
                continue;
            }
            self.of_warp(common, here, instruction)
                .map_err(|why| format!("{why}: block {:?}, warp {}, {}", common.at, self.number, instruction.text))?;
            for lane in lanes(here) {
                self.waits[lane] = Waits::No;
                self.at[lane] += 1;
            }
            return Ok(true);
        }
        if self.asked != 0 {
            return Ok(false);
        }
        // They may wait for lanes that are at a barrier of the block, which never comes.
        Err(format!("lanes wait for others that do not come, at {}", kernel.instructions[places[0] as usize].text))
    }

    fn of_warp(&mut self, common: &mut Common, here: u32, instruction: &Instruction) -> Result<(), String> {
        let (to, of) = (&instruction.to, &instruction.of);
        let whole = || {
            if here == u32::MAX { Ok(()) } else { Err(format!("{} lanes of a warp", here.count_ones())) }
        };
        match &instruction.op {
            Op::BarrierOfWarp => {}
            Op::Active => self.set(to[0], &[u64::from(here); 32], here),
            Op::Elect => {
                let first = here.trailing_zeros() as usize;
                self.set(to[0], &[first as u64; 32], here);
                self.set(to[1], &std::array::from_fn(|lane| u64::from(lane == first)), here);
            }
            Op::Shuffle(how) => {
                let values = self.get(common, of[0]);
                let (by, third) = (self.get(common, of[1]), self.get(common, of[2]));
                let (mut moved, mut holds) = ([0; 32], [0; 32]);
                for lane in 0..32 {
                    let id = lane as u32;
                    let by = by[lane] as u32;
                    let third = third[lane] as u32;
                    let (clamp, segment) = (third & 31, third >> 8 & 31);
                    let most = (id & segment) | (clamp & !segment);
                    let (source, is_within) = match how {
                        Shuffle::Index => {
                            let source = (id & segment) | (by & !segment & 31);
                            (source, source <= most)
                        }
                        Shuffle::Up => {
                            let source = id.wrapping_sub(by & 31);
                            (source, (source as i32) >= most as i32)
                        }
                        Shuffle::Down => {
                            let source = id + (by & 31);
                            (source, source <= most)
                        }
                        Shuffle::Xor => {
                            let source = id ^ (by & 31);
                            (source, source <= most)
                        }
                    };
                    let source = if is_within { source as usize } else { lane };
                    if here >> lane & 1 == 1 && here >> source & 1 == 0 {
                        return Err(format!("lane {lane} takes what lane {source} has, which is not there"));
                    }
                    moved[lane] = values[source] & 0xffff_ffff;
                    holds[lane] = u64::from(is_within);
                }
                self.set(to[0], &moved, here);
                if let Some(other) = to.get(1) {
                    self.set(*other, &holds, here);
                }
            }
            Op::Vote(how) => {
                let votes = self.get(common, of[0]);
                let ballot = lanes(here).fold(0u32, |mask, lane| mask | ((votes[lane] & 1) as u32) << lane);
                let value = match how {
                    Vote::All => u64::from(ballot == here),
                    Vote::Any => u64::from(ballot != 0),
                    Vote::Same => u64::from(ballot == 0 || ballot == here),
                    Vote::Ballot => u64::from(ballot),
                };
                self.set(to[0], &[value; 32], here);
            }
            Op::Reduce(two) => {
                let values = self.get(common, of[0]);
                let value = lanes(here)
                    .map(|lane| values[lane])
                    .reduce(|sum, value| number::two(*two, instruction.ty, sum, value, false, false))
                    .unwrap_or(0);
                self.set(to[0], &[value; 32], here);
            }
            Op::Matrices { m, n, k, types } => {
                whole()?;
                let (m, n, k) = (*m, *n, *k);
                let [of_d, of_a, of_b, of_c] = types;
                let mut a = vec![0.0f32; m * k];
                let mut b = vec![0.0f32; k * n];
                let mut c = vec![0.0f32; m * n];
                let per_word = |ty: &Ty| 32 / ty.bits() as usize;
                let count_a = m * k / 32 / per_word(of_a);
                let count_b = k * n / 32 / per_word(of_b);
                let step = per_word(of_a);
                for word in 0..count_a {
                    let bits = self.get(common, of[word]);
                    for lane in 0..32 {
                        let (group, within) = (lane / 4, lane % 4);
                        let row = group + word % 2 * 8;
                        let column = word / 2 * 4 * step + within * step;
                        for part in 0..step {
                            a[row * k + column + part] = unpacked(of_a, bits[lane], part);
                        }
                    }
                }
                let step = per_word(of_b);
                for word in 0..count_b {
                    let bits = self.get(common, of[count_a + word]);
                    for lane in 0..32 {
                        let (group, within) = (lane / 4, lane % 4);
                        for part in 0..step {
                            b[(word * 4 * step + within * step + part) * n + group] = unpacked(of_b, bits[lane], part);
                        }
                    }
                }
                let place = |ty: &Ty, lane: usize, word: usize, part: usize| {
                    let (group, within) = (lane / 4, lane % 4);
                    if *ty == Ty::F16 {
                        (group + word * 8) * n + within * 2 + part
                    } else {
                        (group + word / 2 * 8) * n + within * 2 + word % 2
                    }
                };
                for (word, operand) in of[count_a + count_b..].iter().enumerate() {
                    let bits = self.get(common, *operand);
                    for lane in 0..32 {
                        for part in 0..per_word(of_c) {
                            c[place(of_c, lane, word, part)] = unpacked(of_c, bits[lane], part);
                        }
                    }
                }
                product(&a, &b, &mut c, m, n, k);
                for (word, operand) in to.iter().enumerate() {
                    let bits = std::array::from_fn(|lane| packed(of_d, |part| c[place(of_d, lane, word, part)]));
                    self.set(*operand, &bits, here);
                }
            }
            Op::LoadMatrix { count, across } => {
                whole()?;
                let addresses = self.get(common, of[0]);
                let mut rows = vec![[0u16; 8]; count * 8];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let source = self.place(common, lane, Space::Shared, addresses[lane], 16, Touch::Read)?;
                    for (place, value) in row.iter_mut().enumerate() {
                        // SAFETY: `place` found these bytes to be there.
                        *value = unsafe { taken(source.add(2 * place), 2) } as u16;
                    }
                }
                for matrix in 0..*count {
                    let words = std::array::from_fn(|lane| {
                        let pick = |part: usize| {
                            let (row, column) =
                                if *across { (lane % 4 * 2 + part, lane / 4) } else { (lane / 4, lane % 4 * 2 + part) };
                            u64::from(rows[matrix * 8 + row][column])
                        };
                        pick(0) | pick(1) << 16
                    });
                    self.set(to[matrix], &words, here);
                }
            }
            Op::StoreMatrix { count, across } => {
                whole()?;
                let addresses = self.get(common, of[0]);
                let mut rows = vec![[0u16; 8]; count * 8];
                for matrix in 0..*count {
                    let words = self.get(common, of[1 + matrix]);
                    for lane in 0..32 {
                        for part in 0..2 {
                            let (row, column) =
                                if *across { (lane % 4 * 2 + part, lane / 4) } else { (lane / 4, lane % 4 * 2 + part) };
                            rows[matrix * 8 + row][column] = (words[lane] >> (16 * part)) as u16;
                        }
                    }
                }
                for (lane, row) in rows.iter().enumerate() {
                    let target = self.place(common, lane, Space::Shared, addresses[lane], 16, Touch::Write)?;
                    for (place, value) in row.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { put(target.add(2 * place), 2, u64::from(*value)) };
                    }
                }
            }
            Op::LoadTile { which, m, n, k, rows, space } => {
                whole()?;
                let ty = instruction.ty;
                let (height, width) = match which {
                    Which::A => (*m, *k),
                    Which::B => (*k, *n),
                    _ => (*m, *n),
                };
                let bytes = ty.bits() as usize / 8;
                let per_word = 32 / ty.bits() as usize;
                let share = height * width / 32;
                let (bases, strides) = (self.get(common, of[0]), self.get(common, of[1]));
                let mut words = vec![[0u64; 32]; to.len()];
                for lane in 0..32 {
                    let stride = strides[lane] as usize & 0xffff_ffff;
                    for element in 0..share {
                        let number = lane * share + element;
                        let (row, column) = (number / width, number % width);
                        let at = if *rows { row * stride + column } else { column * stride + row };
                        let source =
                            self.place(common, lane, *space, bases[lane] + (at * bytes) as u64, bytes, Touch::Read)?;
                        // SAFETY: as above.
                        let bits = unsafe { taken(source, bytes) };
                        words[element / per_word][lane] |= bits << (ty.bits() as usize * (element % per_word));
                    }
                }
                for (part, words) in to.iter().zip(&words) {
                    self.set(*part, words, here);
                }
            }
            Op::StoreTile { m, n, rows, space } => {
                whole()?;
                let ty = instruction.ty;
                let bytes = ty.bits() as usize / 8;
                let per_word = 32 / ty.bits() as usize;
                let share = m * n / 32;
                // The fragment is between the address and the stride.
                let (bases, strides) = (self.get(common, of[0]), self.get(common, of[of.len() - 1]));
                for element in 0..share {
                    let words = self.get(common, of[1 + element / per_word]);
                    for lane in 0..32 {
                        let stride = strides[lane] as usize & 0xffff_ffff;
                        let number = lane * share + element;
                        let (row, column) = (number / n, number % n);
                        let at = if *rows { row * stride + column } else { column * stride + row };
                        let bits = words[lane] >> (ty.bits() as usize * (element % per_word));
                        let target =
                            self.place(common, lane, *space, bases[lane] + (at * bytes) as u64, bytes, Touch::Write)?;
                        // SAFETY: as above.
                        unsafe { put(target, bytes, bits) };
                    }
                }
            }
            Op::MulTiles { m, n, k, types } => {
                whole()?;
                let [of_d, of_a, of_b, of_c] = types;
                // Those of f16 have each number twice, of which the first are used.
                let words = |ty: &Ty, count: usize| {
                    if *ty == Ty::F16 { 8 } else { count / 32 / (32 / ty.bits() as usize) }
                };
                let (count_a, count_b) = (words(of_a, m * k), words(of_b, k * n));
                let fragment = |warp: &Self, begin: usize, ty: &Ty, count: usize| -> Vec<f32> {
                    let per_word = 32 / ty.bits() as usize;
                    let share = count / 32;
                    let mut all = vec![0.0; count];
                    for element in 0..share {
                        let bits = warp.get(common, of[begin + element / per_word]);
                        for lane in 0..32 {
                            all[lane * share + element] = unpacked(ty, bits[lane], element % per_word);
                        }
                    }
                    all
                };
                let a = fragment(self, 0, of_a, m * k);
                let b = fragment(self, count_a, of_b, k * n);
                let mut c = fragment(self, count_a + count_b, of_c, m * n);
                product(&a, &b, &mut c, *m, *n, *k);
                let per_word = 32 / of_d.bits() as usize;
                let share = m * n / 32;
                for (word, part) in to.iter().enumerate() {
                    let bits =
                        std::array::from_fn(|lane| packed(of_d, |element| c[lane * share + word * per_word + element]));
                    self.set(*part, &bits, here);
                }
            }
            Op::Group { n, types } => {
                whole()?;

                let [of_d, of_a, of_b] = types;
                let n = *n;
                let bytes = of_a.bits() as usize / 8;
                let k = 32 / bytes;
                let (mut a, mut b, mut c) = (vec![0.0f32; 16 * k], vec![0.0f32; k * n], vec![0.0f32; 16 * n]);
                // Whether tiles lie with their other side first, which those of 16 bits may.
                let is_half = bytes == 2;
                let in_registers = of.len() > if is_half { 7 } else { 5 };
                let turned = |back: usize| match of[of.len() - back] {
                    Operand::Value(turned) => is_half && turned == 1,
                    _ => false,
                };
                let per_word = 4 / bytes;
                if in_registers {
                    for word in 0..4 {
                        let bits = self.get(common, of[word]);
                        for lane in 0..32 {
                            let row = lane / 4 + word % 2 * 8;
                            let column = word / 2 * 4 * per_word + lane % 4 * per_word;
                            for part in 0..per_word {
                                a[row * k + column + part] = unpacked(of_a, bits[lane], part);
                            }
                        }
                    }
                } else {
                    let tile = Descriptor::of(self.get(common, of[0])[0], turned(2));
                    for row in 0..16 {
                        for column in 0..k {
                            let at = tile.place(self.number % 4 * 16 + row, column, bytes);
                            let source = self.place(common, 0, Space::Shared, at, bytes, Touch::Read)?;
                            // SAFETY: as above.
                            a[row * k + column] = number::float(*of_a, unsafe { taken(source, bytes) }) as f32;
                        }
                    }
                }
                let tile = Descriptor::of(self.get(common, of[if in_registers { 4 } else { 1 }])[0], turned(1));
                for column in 0..n {
                    for row in 0..k {
                        let at = tile.place(column, row, bytes);
                        let source = self.place(common, 0, Space::Shared, at, bytes, Touch::Read)?;
                        // SAFETY: as above.
                        b[row * n + column] = number::float(*of_b, unsafe { taken(source, bytes) }) as f32;
                    }
                }
                let per_word = 32 / of_d.bits() as usize;
                let place = |lane: usize, word: usize, part: usize| {
                    let element = word * per_word + part;
                    (lane / 4 + element / 2 % 2 * 8) * n + element / 4 * 8 + lane % 4 * 2 + element % 2
                };
                for (word, operand) in to.iter().enumerate() {
                    let bits = self.get(common, *operand);
                    for lane in 0..32 {
                        for part in 0..per_word {
                            c[place(lane, word, part)] = unpacked(of_d, bits[lane], part);
                        }
                    }
                }
                product(&a, &b, &mut c, 16, n, k);
                for (word, operand) in to.iter().enumerate() {
                    let bits = std::array::from_fn(|lane| packed(of_d, |part| c[place(lane, word, part)]));
                    self.set(*operand, &bits, here);
                }
            }
            other => return Err(format!("{other:?} is not of a warp")),
        }
        Ok(())
    }
}

impl Common<'_> {
    /// Whether another thread was there, and neither waited for the other.
    fn meets(&mut self, thread: usize, global: bool, address: u64, bytes: usize, touch: Touch) -> Result<(), String> {
        let me = (self.number, thread as u32, self.epoch);
        let other = |who: Option<(u32, u32, u32)>| {
            who.is_some_and(|who| (who.0 != me.0 || who.2 == me.2) && (who.0, who.1) != (me.0, me.1))
        };
        let seen = if global { &mut self.seen_global } else { &mut self.seen_shared };
        for byte in address..address + bytes as u64 {
            let place = seen.entry(byte).or_default();
            let written = place.writer.is_some();
            match touch {
                Touch::Atomic => {
                    if (other(place.writer) || other(place.reader) || place.several) && !place.atomic {
                        return Err(format!("an atomic access and another at {address:x}"));
                    }
                    place.atomic = true;
                    place.writer = Some(me);
                }
                Touch::Write => {
                    let several = place.several && place.reader.is_some_and(|who| who.0 != me.0 || who.2 == me.2);
                    if other(place.writer) || other(place.reader) || place.constant || place.blocks || several {
                        return Err(format!(
                            "two threads at {address:x}: {me:?} writes; {:?} wrote, {:?} read",
                            place.writer, place.reader
                        ));
                    }
                    place.writer = Some(me);
                    place.atomic = false;
                }
                Touch::Read | Touch::ReadConstant => {
                    if other(place.writer) || (touch == Touch::ReadConstant && written) {
                        return Err(format!("two threads at {address:x}: {me:?} reads, {:?} wrote", place.writer));
                    }
                    place.atomic = false;
                    place.blocks |= place.reader.is_some_and(|who| who.0 != me.0);
                    place.constant |= touch == Touch::ReadConstant;
                    let same = place.reader.is_some_and(|who| (who.0, who.2) == (me.0, me.2));
                    place.several = (place.several && same) || other(place.reader);
                    place.reader = Some(me);
                }
            }
        }
        Ok(())
    }
}

/// How a tile lies in shared memory.
struct Descriptor {
    begin: u64,
    /// From one group of its layout to the next along the one side, and along the other.
    leading: u64,
    stride: u64,
    /// Bytes of a row whose parts of 16 bytes change places, or none.
    swizzle: u64,
    /// Whether what lies together goes along the rows of `A` or the columns of `B`, and not along `k`.
    turned: bool,
}

impl Descriptor {
    fn of(bits: u64, turned: bool) -> Self {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        let swizzle = [0, 128, 64, 32][(bits >> 62) as usize];
        Self { begin: field(0), leading: field(16), stride: field(32), swizzle, turned }
    }

    /// Where the element is: which row of `A`, or column of `B`, and which along `k`.
    fn place(&self, outer: usize, along: usize, bytes: usize) -> u64 {
        let (outer, along, bytes) = (outer as u64, along as u64, bytes as u64);
        let within = match (self.turned, self.swizzle) {
            (false, 0) => {
                let byte = along * bytes;
                outer / 8 * self.stride + byte / 16 * self.leading + outer % 8 * 16 + byte % 16
            }
            (false, row) => outer / 8 * self.stride + outer % 8 * row + along * bytes,
            (true, 0) => outer / 8 * self.stride + along / 8 * self.leading + along % 8 * 16 + outer % 8 * bytes,
            (true, row) => {
                let in_row = row / bytes;
                outer / in_row * self.leading + along / 8 * self.stride + along % 8 * row + outer % in_row * bytes
            }
        };
        let at = self.begin + within;
        at ^ (at >> 3 & self.swizzle.saturating_sub(16) & 0x70)
    }
}

/// A barrier in shared memory, in as many bits as a GPU's.
#[derive(Default)]
struct Barrier {
    phase: u32,
    expected: u32,
    pending: u32,
    /// That were told of and have not come.
    bytes: i32,
}

impl Barrier {
    fn of(bits: u64) -> Self {
        Self {
            phase: (bits & 1) as u32,
            expected: (bits >> 1 & 0xfffff) as u32,
            pending: (bits >> 21 & 0xfffff) as u32,
            bytes: (bits as i64 >> 41) as i32,
        }
    }

    fn bits(&self) -> u64 {
        u64::from(self.phase)
            | u64::from(self.expected) << 1
            | u64::from(self.pending) << 21
            | (i64::from(self.bytes) << 41) as u64
    }
}

/// The lanes of a mask.
fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            lane
        })
    })
}

fn unpacked(ty: &Ty, word: u64, part: usize) -> f32 {
    let bits = word >> (ty.bits() as usize * part);
    number::float(*ty, number::cut(bits, ty.bits())) as f32
}

fn packed(ty: &Ty, value: impl Fn(usize) -> f32) -> u64 {
    (0..32 / ty.bits() as usize)
        .fold(0, |word, part| word | number::of_float(*ty, f64::from(value(part))) << (ty.bits() as usize * part))
}

fn product(a: &[f32], b: &[f32], c: &mut [f32], m: usize, n: usize, k: usize) {
    for row in 0..m {
        for along in 0..k {
            let factor = a[row * k + along];
            for column in 0..n {
                c[row * n + column] += factor * b[along * n + column];
            }
        }
    }
}

/// Bytes of the device's, wherever they begin.
fn held(address: u64, bytes: usize) -> Result<*mut u8, String> {
    if memory::has(address, bytes) {
        Ok(address as *mut u8)
    } else {
        Err(format!("an illegal address: {bytes} bytes at {address:x}"))
    }
}

fn begin(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Parameter => PARAMETERS,
        _ => 0,
    }
}

/// # Safety
/// As many bytes are there to be read.
#[inline]
unsafe fn taken(source: *const u8, bytes: usize) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        match bytes {
            1 => u64::from(*source),
            2 => u64::from(source.cast::<u16>().read_unaligned()),
            4 => u64::from(source.cast::<u32>().read_unaligned()),
            _ => source.cast::<u64>().read_unaligned(),
        }
    }
}

/// # Safety
/// As many bytes are there to be written.
#[inline]
unsafe fn put(target: *mut u8, bytes: usize, bits: u64) {
    // SAFETY: the caller's.
    unsafe {
        match bytes {
            1 => *target = bits as u8,
            2 => target.cast::<u16>().write_unaligned(bits as u16),
            4 => target.cast::<u32>().write_unaligned(bits as u32),
            _ => target.cast::<u64>().write_unaligned(bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx;

    /// Runs a kernel of one block on a memory of 64 words, each its own number, and gives them back.
    fn ran(threads: u32, shared: usize, races: bool, body: &str) -> Result<Vec<u32>, String> {
        let text = format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 pool[];\n\
             .visible .entry tried(.param .u64 .ptr .global .align 1 tried_param_0)\n\
             .reqntid {threads}, 1, 1\n{{\n.reg .pred %p<8>;\n.reg .b32 %r<16>;\n.reg .b64 %rd<16>;\n\
             ld.param.b64 %rd1, [tried_param_0];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %rd2, %r1, 4;\n\
             add.s64 %rd3, %rd1, %rd2;\n{body}\nret;\n}}\n"
        );
        let kernel = ptx::read(&text)?.remove(0);
        let memory = crate::memory::take(256, u64::MAX, false).unwrap();
        let words = memory as *mut u32;
        for place in 0..64 {
            // SAFETY: 64 words were taken.
            unsafe { words.add(place).write(place as u32) };
        }
        let outcome = run(&Start {
            kernel: &kernel,
            blocks: [1; 3],
            threads: [threads, 1, 1],
            dynamic: shared,
            parameters: memory.to_le_bytes().to_vec(),
            races,
        });
        // SAFETY: as above.
        let found = (0..64).map(|place| unsafe { words.add(place).read() }).collect();
        crate::memory::give_back(memory);
        outcome.map(|()| found)
    }

    /// Each thread puts its number into shared memory and takes that of its mirror image.
    const MIRROR: &str = "mov.b64 %rd4, pool;\nadd.s64 %rd5, %rd4, %rd2;\nst.shared.b32 [%rd5], %r1;\n\
                          BARRIER\nsub.s32 %r2, 63, %r1;\nmul.wide.u32 %rd6, %r2, 4;\n\
                          add.s64 %rd7, %rd4, %rd6;\nld.shared.b32 %r3, [%rd7];\nst.global.b32 [%rd3], %r3;";

    #[test]
    fn threads_meet_at_a_barrier() {
        let with = MIRROR.replace("BARRIER", "bar.sync 0;");
        let found = ran(64, 256, true, &with).unwrap();
        assert!(found.iter().enumerate().all(|(place, word)| *word as usize == 63 - place), "{found:?}");
        let error = ran(64, 256, true, &MIRROR.replace("BARRIER", "")).unwrap_err();
        assert!(error.contains("two threads at"), "{error}");
        let some = "setp.lt.u32 %p1, %r1, 40;\n@%p1 bar.sync 0;";
        let error = ran(64, 256, true, some).unwrap_err();
        assert!(error.contains("do not reach"), "{error}");
    }

    #[test]
    fn lanes_that_part_come_together_again() {
        // The sum of a warp, of which the odd lanes took another way.
        let body = "and.b32 %r2, %r1, 1;\nsetp.eq.b32 %p1, %r2, 0;\nmov.b32 %r3, %r1;\n@%p1 bra EVEN;\n\
                    mul.lo.s32 %r3, %r1, 2;\nEVEN:\n\
                    shfl.sync.bfly.b32 %r4, %r3, 16, 31, -1;\nadd.s32 %r3, %r3, %r4;\n\
                    shfl.sync.bfly.b32 %r4, %r3, 8, 31, -1;\nadd.s32 %r3, %r3, %r4;\n\
                    shfl.sync.bfly.b32 %r4, %r3, 4, 31, -1;\nadd.s32 %r3, %r3, %r4;\n\
                    shfl.sync.bfly.b32 %r4, %r3, 2, 31, -1;\nadd.s32 %r3, %r3, %r4;\n\
                    shfl.sync.bfly.b32 %r4, %r3, 1, 31, -1;\nadd.s32 %r3, %r3, %r4;\n\
                    st.global.b32 [%rd3], %r3;";
        let sum: u32 = (0..32).map(|lane| lane + lane % 2 * lane).sum();
        assert!(ran(32, 0, false, body).unwrap()[..32].iter().all(|word| *word == sum));
    }

    #[test]
    fn blocks_have_labels_of_their_own() {
        let block = "{\n.reg .pred over;\nagain:\nadd.s32 %r2, %r2, 1;\nsetp.ge.u32 over, %r2, LEAST;\n\
                     @!over bra again;\n}\n";
        let body = format!(
            "mov.b32 %r2, 0;\n{}mul.lo.s32 %r2, %r2, 10;\n{}st.global.b32 [%rd3], %r2;",
            block.replace("LEAST", "3"),
            block.replace("LEAST", "35")
        );
        assert_eq!(ran(32, 0, false, &body).unwrap()[0], 35);
    }

    #[test]
    fn addresses_are_the_device_s_and_aligned() {
        for (body, said) in [
            ("ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd1+4];", "misaligned"),
            ("st.global.b32 [%rd3+256], %r1;", "illegal"),
            ("mov.b64 %rd4, pool;\nld.shared.b32 %r2, [%rd4+256];", "of 256 in Shared"),
        ] {
            let error = ran(32, 256, false, body).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_is_read_as_a_constant_is_written_by_nobody() {
        let body = "ld.global.nc.b32 %r2, [%rd3];\nst.global.b32 [%rd3], %r2;";
        let error = ran(32, 0, true, body).unwrap_err();
        assert!(error.contains("two threads at"), "{error}");
        assert!(ran(32, 0, true, &body.replace(".nc", "")).is_ok());
    }

    #[test]
    fn a_product_of_tiles_is_one() {
        // A is the number of its column in each row, B the identity: the product of both is A.
        let body = "and.b32 %r2, %r1, 3;\nshl.b32 %r2, %r2, 1;\ncvt.rn.f32.u32 %r3, %r2;\n\
                    add.f32 %r4, %r3, 0f3F800000;\ncvt.rn.bf16x2.f32 %r5, %r4, %r3;\n\
                    shr.u32 %r6, %r1, 2;\nsetp.eq.b32 %p1, %r6, %r2;\nselp.b32 %r7, 0x3f80, 0, %p1;\n\
                    add.s32 %r8, %r2, 1;\nsetp.eq.b32 %p2, %r6, %r8;\nselp.b32 %r9, 0x3f800000, 0, %p2;\n\
                    or.b32 %r7, %r7, %r9;\nmov.b32 %r10, 0;\n\
                    mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%r11, %r12, %r13, %r14}, {%r5, %r5}, \
                    {%r7}, {%r10, %r10, %r10, %r10};\n\
                    cvt.rzi.u32.f32 %r12, %r12;\nst.global.b32 [%rd3], %r12;";
        let found = ran(32, 0, false, body).unwrap();
        assert!((0..32).all(|lane| found[lane] as usize == lane % 4 * 2 + 1), "{found:?}");
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let Err(error) = ran(32, 0, false, "frobnicate.b32 %r1, %r2;") else { panic!("it ran") };
        assert!(error.contains("not known"), "{error}");
    }
}
