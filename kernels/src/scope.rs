//! What a thread does differently for the time of some work.

use std::cell::Cell;
use std::thread::LocalKey;

/// Does `work` while `setting` is `value` on this thread, and puts back what was there, if `work` panics too.
pub fn within<T: Copy, R>(setting: &'static LocalKey<Cell<T>>, value: T, work: impl FnOnce() -> R) -> R {
    struct Before<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);
    impl<T: Copy> Drop for Before<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _before = Before(setting, setting.replace(value));
    work()
}
