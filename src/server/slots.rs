//! Places for connections: so many in all, and fewer for each address, so that one client cannot keep all others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::lock::Mutex;

use super::rate::network;

/// The places of one port.
pub(super) struct Slots {
    all_max: usize,
    each_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// Addresses without a connection are not here.
    each: HashMap<IpAddr, usize>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// This address has as many as it may.
    Address,
}

/// One place, until dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    address: IpAddr,
}

impl Slots {
    /// `each_max` for one address; 0: as many as there are. Without it, one address leaves a quarter to others.
    pub fn new(all_max: usize, each_max: Option<usize>) -> Arc<Slots> {
        let each_max = match each_max {
            None => all_max - all_max / 4,
            Some(0) => all_max,
            Some(count) => count,
        };
        Arc::new(Slots {
            all_max,
            each_max,
            taken: Mutex::default(),
        })
    }

    /// A place for a connection from `address`.
    pub fn take(self: &Arc<Slots>, address: IpAddr) -> Result<Slot, Full> {
        let address = network(address);
        let mut taken = self.taken.lock();
        if taken.all >= self.all_max {
            return Err(Full::All);
        }
        if taken
            .each
            .get(&address)
            .is_some_and(|count| *count >= self.each_max)
        {
            return Err(Full::Address);
        }
        taken.all += 1;
        *taken.each.entry(address).or_default() += 1;
        Ok(Slot {
            slots: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock();
        taken.all -= 1;
        if let Some(count) = taken.each.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.each.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn take(slots: &Arc<Slots>, address: &str, count: usize) -> Vec<Result<Slot, Full>> {
        (0..count)
            .map(|_| slots.take(address.parse().unwrap()))
            .collect()
    }

    fn taken(answers: &[Result<Slot, Full>]) -> usize {
        answers.iter().filter(|answer| answer.is_ok()).count()
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let slots = Slots::new(8, None);
        let greedy = take(&slots, "10.0.0.1", 9);
        assert_eq!(taken(&greedy), 6);
        assert_eq!(greedy[8].as_ref().err(), Some(&Full::Address));
        let others = take(&slots, "10.0.0.2", 3);
        assert_eq!(taken(&others), 2);
        assert_eq!(others[2].as_ref().err(), Some(&Full::All));
        drop(greedy);
        assert_eq!(taken(&take(&slots, "10.0.0.2", 9)), 4);
        drop(others);
        assert!(slots.taken.lock().each.is_empty() && slots.taken.lock().all == 0);
    }

    #[test]
    fn a_network_is_one_address_and_the_bound_can_be_lifted() {
        let slots = Slots::new(8, Some(1));
        let one = take(&slots, "2001:db8::1", 1);
        assert_eq!(taken(&take(&slots, "2001:db8::2", 1)), 0);
        assert_eq!(taken(&take(&slots, "2001:db8:0:1::1", 1)), 1);
        drop(one);
        assert_eq!(taken(&take(&Slots::new(8, Some(0)), "10.0.0.1", 9)), 8);
        assert_eq!(taken(&take(&Slots::new(1, None), "10.0.0.1", 2)), 1);
    }
}
