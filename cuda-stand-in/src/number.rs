//! Numbers of 16 bits, and what instructions make of numbers.

use crate::ptx::{Compare, One, Round, Two, Ty};

pub fn from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 31);
    let fraction = u32::from(bits & 1023);
    f32::from_bits(match exponent {
        0 => return f32::from_bits(sign | 1.0f32.to_bits()) * fraction as f32 * (-24f32).exp2(),
        31 => sign | 0x7f80_0000 | fraction << 13,
        _ => sign | (exponent + 112) << 23 | fraction << 13,
    })
}

pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

pub fn to_bf16(value: f32, round: Round) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    let up = match round {
        Round::Near => 0x7fff + (bits >> 16 & 1),
        Round::Zero => 0,
        Round::Up => {
            if value > 0.0 {
                0xffff
            } else {
                0
            }
        }
        Round::Down => {
            if value < 0.0 {
                0xffff
            } else {
                0
            }
        }
    };
    (bits.wrapping_add(up) >> 16) as u16
}

pub fn to_f16(value: f64, round: Round) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let size = value.abs();
    // In units of the last place of its exponent.
    let exponent = if size == 0.0 { -14.0 } else { size.log2().floor().clamp(-14.0, 15.0) };
    let unit = (exponent - 10.0f64).exp2();
    let scaled = size / unit;
    let whole = match round {
        Round::Near => {
            let floor = scaled.floor();
            let rest = scaled - floor;
            if rest > 0.5 || (rest == 0.5 && floor % 2.0 == 1.0) { floor + 1.0 } else { floor }
        }
        Round::Zero => scaled.floor(),
        Round::Up => {
            if sign == 0 {
                scaled.ceil()
            } else {
                scaled.floor()
            }
        }
        Round::Down => {
            if sign != 0 {
                scaled.ceil()
            } else {
                scaled.floor()
            }
        }
    };
    let rounded = whole * unit;
    if rounded >= 65536.0 {
        return sign | if round == Round::Zero { 0x7bff } else { 0x7c00 };
    }
    if rounded < (-14f64).exp2() {
        return sign | (rounded / (-24f64).exp2()) as u16;
    }
    let exponent = rounded.log2().floor();
    let fraction = (rounded / exponent.exp2() - 1.0) * 1024.0;
    sign | ((exponent as i32 + 15) as u16) << 10 | fraction as u16
}

/// The float of a register as one of 64 bits: what is added, multiplied, divided or rooted there and rounded
/// to 32 is what it would have been in 32.
pub fn float(ty: Ty, bits: u64) -> f64 {
    match ty {
        Ty::F16 => f64::from(from_f16(bits as u16)),
        Ty::BF16 => f64::from(from_bf16(bits as u16)),
        Ty::F64 => f64::from_bits(bits),
        Ty::TF32 => f64::from(f32::from_bits(bits as u32 & !0x1fff)),
        _ => f64::from(f32::from_bits(bits as u32)),
    }
}

pub fn of_float(ty: Ty, value: f64) -> u64 {
    match ty {
        Ty::F16 => u64::from(to_f16(value, Round::Near)),
        // Both roundings of a sum or product of two numbers of 8 bits are one.
        Ty::BF16 => u64::from(to_bf16(value as f32, Round::Near)),
        Ty::F64 => value.to_bits(),
        _ => u64::from((value as f32).to_bits()),
    }
}

pub fn signed(bits: u64, width: u32) -> i64 {
    if width >= 64 { bits as i64 } else { (bits << (64 - width)) as i64 >> (64 - width) }
}

pub fn cut(bits: u64, width: u32) -> u64 {
    if width >= 64 { bits } else { bits & ((1 << width) - 1) }
}

/// Halves of a word one by one.
fn halves(ty: Ty, each: impl Fn(Ty, usize) -> u64) -> u64 {
    let half = if ty == Ty::F16x2 { Ty::F16 } else { Ty::BF16 };
    each(half, 0) | each(half, 16) << 16
}

fn least(one: f64, other: f64, nan: bool) -> f64 {
    if one.is_nan() || other.is_nan() {
        return if nan {
            f64::NAN
        } else if one.is_nan() {
            other
        } else {
            one
        };
    }
    if one < other || (one == other && one.is_sign_negative()) { one } else { other }
}

pub fn two(what: Two, ty: Ty, one: u64, other: u64, nan: bool, saturate: bool) -> u64 {
    if matches!(ty, Ty::F16x2 | Ty::BF16x2) {
        return halves(ty, |ty, at| two(what, ty, one >> at & 0xffff, other >> at & 0xffff, nan, saturate));
    }
    if ty.is_float() {
        let (one, other) = (float(ty, one), float(ty, other));
        let value = match what {
            Two::Add => one + other,
            Two::Sub => one - other,
            Two::Mul => one * other,
            Two::Div => one / other,
            Two::Min => least(one, other, nan),
            Two::Max => -least(-one, -other, nan),
            Two::CopySign => other.copysign(one),
            _ => f64::NAN,
        };
        let value = if saturate { value.clamp(0.0, 1.0) } else { value };
        return of_float(ty, value);
    }
    let width = ty.bits();
    let is_signed = matches!(ty, Ty::S(_));
    let (a, b) = (signed(one, width), signed(other, width));
    let (x, y) = (cut(one, width), cut(other, width));
    let value = match what {
        Two::Add if saturate => (a + b).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64,
        Two::Add => x.wrapping_add(y),
        Two::Sub if saturate => (a - b).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64,
        Two::Sub => x.wrapping_sub(y),
        Two::Mul => x.wrapping_mul(y),
        Two::MulHigh if is_signed => ((i128::from(a) * i128::from(b)) >> width) as u64,
        Two::MulHigh => ((u128::from(x) * u128::from(y)) >> width) as u64,
        Two::MulWide if is_signed => return cut((a as i128 * b as i128) as u64, width * 2),
        Two::MulWide => return cut(x.wrapping_mul(y), width * 2),
        Two::Div if y == 0 => u64::MAX,
        Two::Div if is_signed => a.wrapping_div(b) as u64,
        Two::Div => x / y,
        Two::Rem if y == 0 => x,
        Two::Rem if is_signed => a.wrapping_rem(b) as u64,
        Two::Rem => x % y,
        Two::Min if is_signed => a.min(b) as u64,
        Two::Min => x.min(y),
        Two::Max if is_signed => a.max(b) as u64,
        Two::Max => x.max(y),
        Two::And => x & y,
        Two::Or => x | y,
        Two::Xor => x ^ y,
        // By how much is a number of 32 bits, whatever is shifted.
        Two::Left => {
            if other as u32 >= width {
                0
            } else {
                x << (other as u32)
            }
        }
        Two::Right if is_signed => (a >> (other as u32).min(63)) as u64,
        Two::Right => {
            if other as u32 >= width {
                0
            } else {
                x >> (other as u32)
            }
        }
        Two::CopySign => x,
    };
    cut(value, width)
}

pub fn mul_add(what: Two, ty: Ty, one: u64, other: u64, third: u64, relu: bool) -> u64 {
    if matches!(ty, Ty::F16x2 | Ty::BF16x2) {
        return halves(ty, |ty, at| {
            mul_add(what, ty, one >> at & 0xffff, other >> at & 0xffff, third >> at & 0xffff, relu)
        });
    }
    let value = match ty {
        Ty::F32 => {
            let [one, other, third] = [one, other, third].map(|bits| f32::from_bits(bits as u32));
            u64::from(one.mul_add(other, third).to_bits())
        }
        _ if ty.is_float() => {
            let [one, other, third] = [one, other, third].map(|bits| float(ty, bits));
            of_float(ty, one.mul_add(other, third))
        }
        _ => {
            let product = two(what, ty, one, other, false, false);
            let width = if what == Two::MulWide { ty.bits() * 2 } else { ty.bits() };
            cut(product.wrapping_add(third), width)
        }
    };
    if relu && float(ty, value) < 0.0 { 0 } else { value }
}

/// A number of 32 bits on that side of it.
pub fn directed(value: f64, round: Round) -> f32 {
    let near = value as f32;
    let off = f64::from(near) - value;
    match round {
        Round::Up if off < 0.0 => near.next_up(),
        Round::Down if off > 0.0 => near.next_down(),
        Round::Zero if off * value.signum() > 0.0 => {
            if value > 0.0 {
                near.next_down()
            } else {
                near.next_up()
            }
        }
        _ => near,
    }
}

pub fn one(what: One, ty: Ty, bits: u64) -> u64 {
    if matches!(ty, Ty::F16x2 | Ty::BF16x2) {
        return halves(ty, |ty, at| one(what, ty, bits >> at & 0xffff));
    }
    let width = ty.bits();
    if ty.is_float() {
        let sign = 1u64 << (width - 1);
        match what {
            One::Neg => return bits ^ sign,
            One::Abs => return bits & !sign,
            _ => {}
        }
        let value = float(ty, bits);
        return of_float(
            ty,
            match what {
                One::Root => value.sqrt(),
                One::InverseRoot => 1.0 / value.sqrt(),
                One::Inverse => 1.0 / value,
                One::Exp2 => value.exp2(),
                One::Log2 => value.log2(),
                One::Sin => value.sin(),
                One::Cos => value.cos(),
                _ => value.tanh(),
            },
        );
    }
    let bits = cut(bits, width);
    let value = match what {
        One::Neg => bits.wrapping_neg(),
        One::Abs => signed(bits, width).unsigned_abs(),
        One::Not if ty == Ty::Pred => return bits ^ 1,
        One::Not => !bits,
        One::Count => return u64::from(bits.count_ones()),
        One::LeadingZeros => return u64::from(bits.leading_zeros() - (64 - width)),
        One::Reverse => bits.reverse_bits() >> (64 - width),
        One::HighestBit => {
            let of = if matches!(ty, Ty::S(_)) && signed(bits, width) < 0 { cut(!bits, width) } else { bits };
            return if of == 0 { 0xffff_ffff } else { u64::from(63 - of.leading_zeros()) };
        }
        _ => return 0,
    };
    cut(value, width)
}

pub fn compares(compare: Compare, unordered: bool, ty: Ty, one: u64, other: u64) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = if ty.is_float() {
        float(ty, one).partial_cmp(&float(ty, other))
    } else if matches!(ty, Ty::S(_)) {
        Some(signed(one, ty.bits()).cmp(&signed(other, ty.bits())))
    } else {
        Some(cut(one, ty.bits()).cmp(&cut(other, ty.bits())))
    };
    match (compare, order) {
        (Compare::Numbers, order) => order.is_some(),
        (Compare::NotNumbers, order) => order.is_none(),
        (_, None) => unordered,
        (Compare::Eq, Some(order)) => order == Equal,
        (Compare::Ne, Some(order)) => order != Equal,
        (Compare::Lt, Some(order)) => order == Less,
        (Compare::Le, Some(order)) => order != Greater,
        (Compare::Gt, Some(order)) => order == Greater,
        (Compare::Ge, Some(order)) => order != Less,
    }
}

pub fn convert(to: Ty, from: Ty, bits: u64, round: Round, whole: bool, saturate: bool) -> u64 {
    if from.is_float() {
        let mut value = float(from, bits);
        let is_whole = !to.is_float() || whole;
        if is_whole {
            value = match round {
                Round::Near => {
                    let near = value.round();
                    if (value - value.trunc()).abs() == 0.5 && near % 2.0 != 0.0 { value.trunc() } else { near }
                }
                Round::Zero => value.trunc(),
                Round::Up => value.ceil(),
                Round::Down => value.floor(),
            };
        }
        if to.is_float() {
            if saturate {
                value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
            }
            return match to {
                Ty::F16 => u64::from(to_f16(value, round)),
                Ty::BF16 => u64::from(to_bf16(value as f32, round)),
                // To the nearest, ties away from zero.
                Ty::TF32 if value.is_nan() => 0x7fff_ffff,
                Ty::TF32 => u64::from((value as f32).to_bits().wrapping_add(0x1000) & !0x1fff),
                Ty::F32 => u64::from(directed(value, round).to_bits()),
                _ => of_float(to, value),
            };
        }
        if value.is_nan() {
            return if from == Ty::F64 || to.bits() == 64 { 1 << (to.bits() - 1) } else { 0 };
        }
        return match to {
            Ty::S(8) => value as i8 as u8 as u64,
            Ty::S(16) => value as i16 as u16 as u64,
            Ty::S(32) => value as i32 as u32 as u64,
            Ty::S(_) => value as i64 as u64,
            Ty::U(8) => value as u8 as u64,
            Ty::U(16) => value as u16 as u64,
            Ty::U(32) => value as u32 as u64,
            _ => value as u64,
        };
    }
    let number = if matches!(from, Ty::S(_)) {
        i128::from(signed(bits, from.bits()))
    } else {
        i128::from(cut(bits, from.bits()))
    };
    if to.is_float() {
        return match to {
            Ty::F32 => u64::from((number as f32).to_bits()),
            _ => of_float(to, number as f64),
        };
    }
    let number = if saturate {
        match to {
            Ty::S(width) => number.clamp(-(1 << (width - 1)), (1 << (width - 1)) - 1),
            _ => number.clamp(0, (1 << to.bits()) - 1),
        }
    } else {
        number
    };
    cut(number as u64, to.bits())
}
