//! The shortest decimal number that stands for a double.
//!
//! The algorithm is Schubfach, from Raffaello Giulietti: *The Schubfach way to render doubles*, 2020. Of all decimal numbers
//! that are read back as the double, it finds one with the fewest digits, and of those the nearest. So does Python.
//! `core::fmt` cannot be used here: it contains calls to panic, and code with those cannot be mapped.

/// A decimal number: `digits` times ten to the power of `exponent`. Both are zero for zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    /// At most 17 digits. The last one is not zero.
    pub digits: u64,
    /// From -324 to 308.
    pub exponent: i32,
}

/// How many bits of a double are its fraction.
const FRACTION_BITS: u32 = 52;
/// The exponent of two that a double with the exponent zero would have, if its fraction is an integer.
const EXPONENT_BIAS: i32 = 1075;
/// The smallest and the largest exponent in [`POWERS`].
const LEAST: i32 = -292;
const MOST: i32 = 324;
const COUNT: usize = (MOST - LEAST + 1) as usize;
/// Ten to the power of each exponent, rounded up to 128 bits: high and low half, so that the highest bit is set.
static POWERS: [(u64, u64); COUNT] = powers();

impl Decimal {
    /// Returns the shortest decimal number for the magnitude of a double. Returns `None` for infinities and NaN.
    pub fn of(double: f64) -> Option<Decimal> {
        let bits = double.to_bits();
        let fraction = bits & ((1 << FRACTION_BITS) - 1);
        let exponent = (bits >> FRACTION_BITS) as i32 & 0x7ff;
        match (exponent, fraction) {
            (0x7ff, _) => None,
            (0, 0) => Some(Decimal { digits: 0, exponent: 0 }),
            (0, _) => shortest(fraction, 1 - EXPONENT_BIAS, false),
            // Below a power of two, doubles are twice as dense as above.
            _ => shortest(
                fraction | 1 << FRACTION_BITS,
                exponent - EXPONENT_BIAS,
                fraction == 0 && exponent > 1,
            ),
        }
    }
}

/// Returns the shortest decimal number for `c` times two to the power of `q`. `is_closer_below` says that the next double
/// below is half as far away as the one above.
fn shortest(c: u64, q: i32, is_closer_below: bool) -> Option<Decimal> {
    // An even double is also nearest to the numbers in the middle between it and its neighbors.
    let outside = c & 1;
    // The largest power of ten that is at most as large as the distance of the two middles.
    let k = (q * 1_262_611 - if is_closer_below { 524_031 } else { 0 }) >> 22;
    let shift = q + log2_of_power(-k) + 1;
    let (high, low) = *POWERS.get((-k - LEAST) as usize)?;
    // Four times the double and the two middles, in units of ten to the power of `k`.
    let scaled = |c: u64| scale(high, low, c << shift);
    let value = scaled(4 * c);
    let lower = scaled(4 * c - 2 + u64::from(is_closer_below)) + outside;
    let upper = scaled(4 * c + 2) - outside;
    let below = value / 4;
    // With one digit less, at most one number is inside. If it is, there is none that is shorter.
    let tens = below / 10;
    let (is_below_inside, is_above_inside) = (lower <= 40 * tens, 40 * tens + 40 <= upper);
    if below >= 10 && is_below_inside != is_above_inside {
        return Some(without_zeros(tens + u64::from(is_above_inside), k + 1));
    }
    let (is_below_inside, is_above_inside) = (lower <= 4 * below, 4 * below + 4 <= upper);
    let rounds_up = if is_below_inside != is_above_inside {
        is_above_inside
    } else {
        let middle = 4 * below + 2;
        value > middle || (value == middle && below & 1 == 1)
    };
    Some(without_zeros(below + u64::from(rounds_up), k))
}

/// Returns the highest 64 bits of a product of 192 bits. The last bit is set too if lower ones are, so that comparisons with
/// even numbers are exact.
fn scale(high: u64, low: u64, factor: u64) -> u64 {
    let carried = (u128::from(low) * u128::from(factor)) >> 64;
    let product = u128::from(high) * u128::from(factor) + carried;
    (product >> 64) as u64 | u64::from(product as u64 > 1)
}

/// Moves zeros at the end into the exponent.
fn without_zeros(mut digits: u64, mut exponent: i32) -> Decimal {
    while digits != 0 && digits.is_multiple_of(10) {
        digits /= 10;
        exponent += 1;
    }
    Decimal { digits, exponent }
}

/// Returns the logarithm to base two of ten to the power of an exponent, rounded down. Exact for those in [`POWERS`].
const fn log2_of_power(exponent: i32) -> i32 {
    (exponent * 1_741_647) >> 19
}

/// An integer of 1,280 bits, the lowest first: larger than ten to the power of [`MOST`], and two to the power of
/// [`FIXED_BITS`].
type Large = [u64; 20];
/// Powers below one are fractions of two to the power of this.
const FIXED_BITS: usize = 1216;

const fn powers() -> [(u64, u64); COUNT] {
    let mut powers = [(0, 0); COUNT];
    let mut power: Large = [0; 20];
    power[0] = 1;
    let mut exponent = 0;
    while exponent <= MOST {
        powers[(exponent - LEAST) as usize] = highest_bits(&power);
        power = times_ten(power);
        exponent += 1;
    }
    power = [0; 20];
    power[FIXED_BITS / 64] = 1;
    exponent = -1;
    while exponent >= LEAST {
        power = by_ten(power);
        powers[(exponent - LEAST) as usize] = highest_bits(&power);
        exponent -= 1;
    }
    powers
}

const fn times_ten(mut number: Large) -> Large {
    let (mut place, mut carried) = (0, 0);
    while place < number.len() {
        let product = number[place] as u128 * 10 + carried;
        number[place] = product as u64;
        carried = product >> 64;
        place += 1;
    }
    number
}

/// Divides by ten, and leaves out the remainder. Doing this repeatedly gives the same as one division by the power of ten.
const fn by_ten(mut number: Large) -> Large {
    let (mut place, mut rest) = (number.len(), 0);
    while place > 0 {
        place -= 1;
        let dividend = rest << 64 | number[place] as u128;
        number[place] = (dividend / 10) as u64;
        rest = dividend % 10;
    }
    number
}

/// Returns the highest 128 bits, rounded up. A power of ten below one always has a remainder.
const fn highest_bits(number: &Large) -> (u64, u64) {
    let mut top = number.len() - 1;
    while number[top] == 0 {
        top -= 1;
    }
    let shift = number[top].leading_zeros();
    let mut bits = [0; 3];
    let mut part = 0;
    while part < bits.len() && part <= top {
        bits[part] = number[top - part];
        part += 1;
    }
    let [mut high, mut low, mut rest] = bits;
    if shift > 0 {
        high = high << shift | low >> (64 - shift);
        low = low << shift | rest >> (64 - shift);
        rest <<= shift;
    }
    let mut is_exact = rest == 0;
    while part <= top {
        is_exact = is_exact && number[top - part] == 0;
        part += 1;
    }
    if is_exact {
        return (high, low);
    }
    let rounded = ((high as u128) << 64 | low as u128) + 1;
    ((rounded >> 64) as u64, rounded as u64)
}
