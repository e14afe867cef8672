//! What makes two rows copies of each other, as 64 bits: the device, the time, and every metric with its value. The
//! parts are added up, so the order of the readings does not matter. Computed anew from files and messages, never
//! stored.

use std::hash::BuildHasher;

use dunlin_model::{Timestamp, ValueRef};

const BOOL: u64 = 0x9ae1_6a3b_2f90_404f;
const INT: u64 = 0xc2b2_ae3d_27d4_eb4f;
const TEXT: u64 = 0x1656_67b1_9e37_79f9;

/// A row that is never a copy: filed under the server's time.
pub(crate) const NEVER: u64 = 0;

pub(crate) fn name(text: &str) -> u64 {
    foldhash::quality::FixedState::with_seed(0x6475_6e6c_696e).hash_one(text)
}

pub(crate) fn row(device: u64, time: Timestamp) -> u64 {
    mix(device, time.as_micros() as u64)
}

pub(crate) fn reading(metric: u64, value: ValueRef<'_>) -> u64 {
    mix(metric, canonical(value))
}

/// Never `NEVER`.
pub(crate) fn seal(sum: u64) -> u64 {
    sum.max(1)
}

/// 5 and 5.0 are the same value, as are 0.0 and -0.0.
fn canonical(value: ValueRef<'_>) -> u64 {
    match value {
        ValueRef::F64(v) => (v + 0.0).to_bits(),
        ValueRef::I64(v) if is_exact(v) => (v as f64).to_bits(),
        ValueRef::I64(v) => (v as u64) ^ INT,
        ValueRef::Bool(v) => BOOL + u64::from(v),
        ValueRef::Text(v) => name(v) ^ TEXT,
    }
}

/// Whether a float holds this integer without loss.
pub(crate) fn is_exact(v: i64) -> bool {
    const EXACT: i64 = 1 << 53;
    (-EXACT..=EXACT).contains(&v)
}

fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x2d35_8dcc_aa6c_78a5) * u128::from(b ^ 0x8bb8_4b93_962e_acc9);
    let folded = (product as u64) ^ (product >> 64) as u64;
    let product = u128::from(folded ^ a.rotate_left(32)) * 0x9e37_79b9_7f4a_7c15_u128;
    (product as u64) ^ (product >> 64) as u64
}
