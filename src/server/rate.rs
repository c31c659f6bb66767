//! How many requests a client may make: a bucket for each address, filled at a steady rate.
//!
//! The bound is far above what an honest shipper does, and there for what loops or guesses. A request with a bad token costs
//! as much as many good ones.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use crate::lock::Mutex;

/// Addresses that are counted one by one; beyond, all others share a bucket.
const ADDRESSES_MAX: usize = 4096;
/// What a request costs whose token is not known here.
const BAD_TOKEN_COST: f64 = 200.0;
/// So many seconds of requests may come at once.
const BURST_SECONDS: f64 = 2.0;

/// The buckets of all clients.
pub(super) struct Rates {
    per_second: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    /// `per_second` requests from each address on average; 0: without bound.
    pub fn new(per_second: u32) -> Rates {
        Rates {
            per_second: f64::from(per_second),
            buckets: Mutex::new(HashMap::new()),
        }
    }

    /// Whether a request from `address` may be looked at now.
    pub fn admit(&self, address: IpAddr, now: Instant) -> bool {
        self.take(address, now, 1.0)
    }

    /// A request from `address` had a token that is not known.
    pub fn punish(&self, address: IpAddr, now: Instant) {
        self.take(address, now, BAD_TOKEN_COST - 1.0);
    }

    /// Takes `cost` out of the bucket, which may be left in debt for a moment; false if it was empty.
    fn take(&self, address: IpAddr, now: Instant, cost: f64) -> bool {
        if self.per_second == 0.0 {
            return true;
        }
        let full = self.per_second * BURST_SECONDS;
        let refilled = |bucket: &Bucket| {
            let seconds = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + seconds * self.per_second).min(full)
        };
        let mut buckets = self.buckets.lock();
        let mut key = network(address);
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&key) {
            // Whoever has a full bucket need not be remembered.
            buckets.retain(|_, bucket| refilled(bucket) < full);
            if buckets.len() >= ADDRESSES_MAX {
                key = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            left: full,
            at: now,
        });
        let left = refilled(bucket);
        let punished = cost > 1.0;
        *bucket = Bucket {
            left: if left >= 1.0 || punished {
                (left - cost).max(-full)
            } else {
                left
            },
            at: now,
        };
        left >= 1.0
    }
}

/// Who counts as one: an address, and of IPv6 the 64 bits that a network has.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_bucket_empties_and_fills_and_is_its_owners() {
        let (rates, now) = (Rates::new(10), Instant::now());
        let admitted = (0..100).filter(|_| rates.admit(address(1), now)).count();
        assert_eq!(admitted, 20);
        assert!(rates.admit(address(2), now));
        let later = now + Duration::from_secs(1);
        let admitted = (0..100).filter(|_| rates.admit(address(1), later)).count();
        assert_eq!(admitted, 10);
        assert!((0..1000).all(|_| Rates::new(0).admit(address(1), now)));
    }

    #[test]
    fn bad_tokens_are_dear() {
        let (rates, now) = (Rates::new(1000), Instant::now());
        let mut tries = 0;
        while rates.admit(address(1), now) {
            rates.punish(address(1), now);
            tries += 1;
        }
        assert_eq!(tries, 10);
    }

    #[test]
    fn memory_is_bounded_and_networks_are_one() {
        let (rates, now) = (Rates::new(1), Instant::now());
        for n in 0..20_000 {
            rates.admit(address(n), now);
        }
        assert!(rates.buckets.lock().len() <= ADDRESSES_MAX + 1);
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
