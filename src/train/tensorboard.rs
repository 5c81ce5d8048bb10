//! A run's measurements as TensorBoard reads them: records of `Event` messages, each framed by its length and masked
//! CRC-32C sums (TensorFlow's record format).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::measurement::Measurement;
use crate::error::{Error, Result};

const VERSION: &str = "brain.Event:2";

/// Appends measurements to an event file.
pub struct Events {
    path: PathBuf,
    file: File,
    /// The time, in seconds since 1970, at which the run would have begun had it never stopped.
    began: f64,
}

impl Events {
    /// A new file in `out` in place of older ones, which begins with the measurements `kept`.
    pub fn create(out: &Path, kept: &[Measurement]) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        for entry in std::fs::read_dir(out).map_err(Error::io(out))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("events.out.tfevents.") {
                std::fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
            }
        }
        let path = out.join(format!("events.out.tfevents.{}.sidenote", now as u64));
        let file = File::create(&path).map_err(Error::io(&path))?;
        let began = now - kept.last().map_or(0.0, |line| line.seconds);
        let mut events = Self { path, file, began };
        events.put(&event(began, 0, |event| bytes(event, 3, VERSION.as_bytes())))?;
        kept.iter().try_for_each(|line| events.write(line))?;
        Ok(events)
    }

    /// Appends one measurement.
    pub fn write(&mut self, line: &Measurement) -> Result<()> {
        let scalars = [
            ("loss/train", line.loss),
            ("loss/held_out", line.held_out_loss),
            ("learning_rate", Some(line.learning_rate)),
            ("gradient_norm", line.gradient_norm),
            ("tokens", Some(line.tokens as f64)),
        ];
        let parts =
            line.held_out_losses.iter().map(|(name, loss)| (format!("loss/held_out/{name}"), Some(*loss)));
        let scalars = scalars.into_iter().map(|(tag, value)| (tag.to_string(), value)).chain(parts);
        let message = event(self.began + line.seconds, line.step as u64, |event| {
            let mut summary = Vec::new();
            for (tag, value) in scalars.clone().filter_map(|(tag, value)| Some((tag, value?))) {
                let mut scalar = Vec::new();
                bytes(&mut scalar, 1, tag.as_bytes());
                scalar.push(2 << 3 | 5);
                scalar.extend((value as f32).to_le_bytes());
                bytes(&mut summary, 1, &scalar);
            }
            bytes(event, 5, &summary);
        });
        self.put(&message)
    }

    fn put(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(message.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(message);
        record.extend(masked(message).to_le_bytes());
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

/// An `Event` of `step` at `time`, in seconds since 1970, with what `content` adds.
fn event(time: f64, step: u64, content: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.to_le_bytes());
    event.push(2 << 3);
    number(&mut event, step);
    content(&mut event);
    event
}

/// Field `field` of a protocol buffer: its length and its bytes.
fn bytes(message: &mut Vec<u8>, field: u8, content: &[u8]) {
    message.push(field << 3 | 2);
    number(message, content.len() as u64);
    message.extend(content);
}

/// Seven bits at a time, the lowest first.
fn number(message: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        message.push(value as u8 | 128);
        value >>= 7;
    }
    message.push(value as u8);
}

/// TensorFlow's masking of a sum, for data that may hold sums itself.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize, held_out_loss: Option<f64>) -> Measurement {
        Measurement {
            step,
            tokens: 300,
            seconds: 2.0,
            loss: Some(1.5),
            gradient_norm: Some(0.25),
            learning_rate: 0.125,
            skipped_steps: 0,
            held_out_loss,
            held_out_losses: Default::default(),
        }
    }

    #[test]
    fn records_are_as_tensorboard_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path(), &[line(20, None)]).unwrap();
        events.write(&line(300, Some(2.0))).unwrap();
        let path = events.path.clone();
        // A resumed run writes anew what it kept.
        let events = Events::create(dir.path(), &[line(20, None), line(300, Some(2.0))]).unwrap();
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files, std::slice::from_ref(&events.path), "{path:?}");
        let mut rest = &std::fs::read(&events.path).unwrap()[..];
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let sum = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(sum(8), masked(&rest[..8]));
            assert_eq!(sum(12 + length), masked(&rest[12..12 + length]));
            messages.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(messages.len(), 3);
        assert!(messages[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        // Step 300, as two bytes of seven bits.
        assert_eq!(messages[2][9..12], [0x10, 0xac, 0x02]);
        let held_out = [&b"\x0a\x14\x0a\x0dloss/held_out\x15"[..], &2f32.to_le_bytes()].concat();
        let holds = |message: &[u8]| message.windows(held_out.len()).any(|part| part == held_out);
        assert!(holds(&messages[2]) && !holds(&messages[1]));
    }

    #[test]
    fn sums_are_castagnolis() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
