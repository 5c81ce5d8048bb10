//! In what numbers products multiply.

use std::cell::Cell;

use crate::scope::within;

/// In what numbers products of many rows multiply. Sums are `f32` always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Both operands rounded to `bf16` (to the nearest, ties to even), as mixed-precision training has it (Micikevicius et
    /// al. 2018; Kalamkar et al. 2019): faster where the processor multiplies such numbers.
    Bf16,
}

thread_local! {
    static CURRENT: Cell<Precision> = const { Cell::new(Precision::F32) };
}

impl Precision {
    /// That of this thread: `F32`, unless it is within [`Self::run`].
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Does `work` with the products that this thread asks for in this precision. An operation that cuts its work among
    /// threads takes its precision along.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        within(&CURRENT, self, work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_lasts_as_long_as_its_work() {
        assert_eq!(Precision::current(), Precision::F32);
        Precision::Bf16.run(|| {
            assert_eq!(Precision::current(), Precision::Bf16);
            Precision::F32.run(|| assert_eq!(Precision::current(), Precision::F32));
            let panicked = std::panic::catch_unwind(|| Precision::F32.run(|| panic!("on purpose")));
            assert!(panicked.is_err());
            assert_eq!(Precision::current(), Precision::Bf16);
            let elsewhere = std::thread::spawn(Precision::current).join().unwrap();
            assert_eq!(elsewhere, Precision::F32);
        });
        assert_eq!(Precision::current(), Precision::F32);
    }
}
