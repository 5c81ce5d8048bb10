//! Processes that train together: each reads batches of its own, and all take the step that their gradients' sum says.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::corpus::bytes_of;
use crate::error::{Error, Result};

/// How long the others are waited for at the start.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a process that has come may take to say who it is.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Numbers that are sent at a time.
const PIECE: usize = 1 << 18;

/// Adds up numbers over processes.
pub trait Group {
    /// Which of them this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Puts the sums over all processes in place of `values`, of which each has as many; they are added in the order of
    /// ranks, so that every process gets the same bits each time.
    ///
    /// # Errors
    /// A process that is gone.
    fn sum(&mut self, values: &mut [f32]) -> Result<()>;
}

/// One process.
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&mut self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }
}

/// Processes of one or many machines, connected by TCP with the first of them. Nobody is asked who they are: use it inside
/// a network that is trusted.
pub struct Star {
    rank: usize,
    size: usize,
    /// Of the first process those to all others, by rank; of each other that to the first.
    links: Vec<TcpStream>,
}

impl Star {
    /// Connects process `rank` of `size`; the first listens at `address`, the others go there.
    ///
    /// # Errors
    /// An address that cannot be listened at, others that do not come within two minutes.
    pub fn connect(address: &str, rank: usize, size: usize) -> Result<Self> {
        let fault = |why: String| Error::setting("--together", format!("{address}: {why}"));
        let until = Instant::now() + PATIENCE;
        if rank == 0 {
            let listener = TcpListener::bind(address).map_err(|e| fault(e.to_string()))?;
            listener.set_nonblocking(true).map_err(|e| fault(e.to_string()))?;
            let mut others: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
            while others.iter().any(Option::is_none) {
                match listener.accept() {
                    Ok((mut link, _)) => {
                        ready(&link).map_err(|e| fault(e.to_string()))?;
                        // Whoever says nothing is none of them.
                        let Ok(number) = said(&mut link) else { continue };
                        let [other, of] = [0, 4].map(|at| {
                            u32::from_le_bytes([number[at], number[at + 1], number[at + 2], number[at + 3]])
                                as usize
                        });
                        match others.get_mut(other.wrapping_sub(1)) {
                            Some(place @ None) if of == size => *place = Some(link),
                            _ => {
                                return Err(fault(format!(
                                    "process {other} of {of} came to the {size} of this run"
                                )));
                            }
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        if Instant::now() > until {
                            let missing = others.iter().filter(|other| other.is_none()).count();
                            return Err(fault(format!("{missing} of {size} processes did not come")));
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Err(e) => return Err(fault(e.to_string())),
                }
            }
            return Ok(Self { rank, size, links: others.into_iter().flatten().collect() });
        }
        let place = address.to_socket_addrs().map_err(|e| fault(e.to_string()))?.next();
        let place = place.ok_or_else(|| fault("is no address".into()))?;
        loop {
            match TcpStream::connect(place) {
                Ok(mut link) => {
                    ready(&link).map_err(|e| fault(e.to_string()))?;
                    let number = [(rank as u32).to_le_bytes(), (size as u32).to_le_bytes()].concat();
                    link.write_all(&number).map_err(|e| fault(e.to_string()))?;
                    return Ok(Self { rank, size, links: vec![link] });
                }
                Err(e) if Instant::now() > until => {
                    return Err(fault(format!("the first process is not there: {e}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// The rank and the size that a process sends first.
fn said(link: &mut TcpStream) -> std::io::Result<[u8; 8]> {
    let mut number = [0; 8];
    link.set_read_timeout(Some(FIRST_WORD))?;
    link.read_exact(&mut number)?;
    link.set_read_timeout(None)?;
    Ok(number)
}

fn ready(link: &TcpStream) -> std::io::Result<()> {
    link.set_nonblocking(false)?;
    link.set_nodelay(true)
}

impl Group for Star {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        let gone = |e: std::io::Error| Error::setting("--together", format!("a process is gone: {e}"));
        let mut bytes = vec![0u8; 4 * PIECE.min(values.len())];
        for piece in values.chunks_mut(PIECE) {
            let bytes = &mut bytes[..4 * piece.len()];
            if self.rank > 0 {
                self.links[0].write_all(bytes_of(piece)).map_err(gone)?;
                self.links[0].read_exact(bytes).map_err(gone)?;
                piece.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
                continue;
            }
            for link in &mut self.links {
                link.read_exact(bytes).map_err(gone)?;
                piece
                    .iter_mut()
                    .zip(bytes.as_chunks::<4>().0)
                    .for_each(|(x, b)| *x += f32::from_le_bytes(*b));
            }
            for link in &mut self.links {
                link.write_all(bytes_of(piece)).map_err(gone)?;
            }
        }
        Ok(())
    }
}

/// Puts the sums over all processes in place of a step's gradients; a weight without one counts as zeros.
///
/// # Errors
/// A process that is gone; when the device refuses.
pub fn sum_gradients(
    group: &mut dyn Group,
    store: &mut GradStore,
    variables: &[(String, Var)],
) -> Result<()> {
    if group.size() == 1 {
        return Ok(());
    }
    for (_, variable) in variables {
        let mut values = match store.remove(variable) {
            Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
            None => vec![0.0; variable.elem_count()],
        };
        group.sum(&mut values)?;
        store.insert(variable, Tensor::from_vec(values, variable.shape(), variable.device())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three processes, here threads: all get the same sums, added in the order of ranks.
    #[test]
    fn all_get_the_sum_in_the_order_of_ranks() {
        let address = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let of = |rank: usize| -> Vec<f32> {
            (0..PIECE + 7).map(|i| ((i * 7 + rank) as f32).sin() * 1e3).collect()
        };
        let work = |rank: usize| {
            let mut group = Star::connect(&address, rank, 3).unwrap();
            let mut values = of(rank);
            group.sum(&mut values).unwrap();
            group.sum(&mut values[..5]).unwrap();
            (group.rank(), values)
        };
        let found = std::thread::scope(|scope| {
            let first = scope.spawn(move || work(0));
            // Somebody who knocks and goes is none of them.
            while TcpStream::connect(&address).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let others = [2, 1].map(|rank| scope.spawn(move || work(rank)));
            others.into_iter().chain([first]).map(|other| other.join().unwrap()).collect::<Vec<_>>()
        });
        let [a, b, c] = [of(0), of(1), of(2)];
        let mut expected: Vec<f32> = (0..a.len()).map(|i| a[i] + b[i] + c[i]).collect();
        expected[..5].iter_mut().for_each(|x| *x = *x + *x + *x);
        for (rank, values) in found {
            assert!(values == expected, "rank {rank}");
        }
    }
}
