//! What requests use and cost, and the budget that no job passes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::Error;

/// What one request used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, those read from the server's cache included.
    pub input_tokens: u64,
    /// Of them, tokens that the server had at hand.
    pub cached_tokens: u64,
    /// Tokens that were written, thoughts included.
    pub output_tokens: u64,
    /// What that cost, in millionths of the currency.
    pub micros: u64,
    /// Whether the server did not say, so that this is our estimate.
    pub estimated: bool,
}

impl Usage {
    /// Tokens in and out.
    pub fn tokens(&self) -> u64 {
        self.input_tokens + self.output_tokens
    }
}

/// What a teacher charges (`[teacher.price]`), in units of a currency per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of the prompt.
    #[serde(default)]
    pub input: f64,
    /// Of the part of the prompt that the server had at hand; as `input` where it is not given.
    #[serde(default)]
    pub cached_input: Option<f64>,
    /// Of what the teacher writes.
    #[serde(default)]
    pub output: f64,
    /// Of a request, whatever its size.
    #[serde(default)]
    pub request: f64,
    /// What a batch costs, as a share of all of these; as much where it is not given.
    #[serde(default)]
    pub batch: Option<f64>,
}

impl Price {
    /// What tokens cost, in millionths of the currency, rounded up: a sum of costs is never too
    /// low.
    pub fn micros(&self, input: u64, cached: u64, output: u64) -> u64 {
        let cached = cached.min(input);
        let of_cached = self.cached_input.unwrap_or(self.input);
        // A price per million tokens is a price in millionths per token.
        let micros = (input - cached) as f64 * self.input
            + cached as f64 * of_cached
            + output as f64 * self.output
            + 1e6 * self.request;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "prices are checked to be finite and at least 0"
        )]
        let whole = micros.ceil() as u64;
        whole
    }

    /// What tokens that were used come to.
    pub(crate) fn usage(&self, (input, output): (u64, u64), cached: u64, estimated: bool) -> Usage {
        Usage {
            input_tokens: input,
            cached_tokens: cached,
            output_tokens: output,
            micros: self.micros(input, cached, output),
            estimated,
        }
    }

    /// These prices in a batch.
    pub(crate) fn in_batches(self) -> Self {
        let share = self.batch.unwrap_or(1.0);
        Self {
            input: share * self.input,
            cached_input: self.cached_input.map(|price| share * price),
            output: share * self.output,
            request: share * self.request,
            batch: None,
        }
    }

    /// Why these can't be prices, if they can't.
    pub(crate) fn problem(&self) -> Option<String> {
        let prices = [
            ("input", self.input),
            ("cached_input", self.cached_input.unwrap_or(0.0)),
            ("output", self.output),
            ("request", self.request),
        ];
        if !(0.0..=1.0).contains(&self.batch.unwrap_or(1.0)) {
            return Some("price.batch is a share of the other prices, from 0 to 1".to_owned());
        }
        let (name, price) = prices
            .into_iter()
            .find(|(_, price)| !(0.0..=1e6).contains(price))?;
        Some(format!(
            "price.{name} is {price}, expected a price per million tokens from 0"
        ))
    }
}

/// The most that a ledger may come to (`[budget]`), counting what all runs spent before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetSettings {
    /// In units of the currency.
    #[serde(default)]
    pub money: Option<f64>,
    /// In tokens, in and out.
    #[serde(default)]
    pub tokens: Option<u64>,
}

/// Keeps spent + in flight below the budget: a request reserves its worst case before it is sent
/// and gives back what it did not use.
pub struct Budget {
    most_micros: u64,
    most_tokens: u64,
    state: Mutex<Balance>,
}

#[derive(Clone, Copy, Default)]
struct Balance {
    spent: Amount,
    reserved: Amount,
}

/// Money and tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Millionths of the currency.
    pub micros: u64,
    /// Tokens in and out.
    pub tokens: u64,
}

impl Amount {
    /// So many times as much, rounded up.
    pub(crate) fn times(self, factor: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a product of positive numbers far below 2^53"
        )]
        let times = |amount: u64| (amount as f64 * factor).ceil() as u64;
        Self {
            micros: times(self.micros),
            tokens: times(self.tokens),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            micros: self.micros.saturating_add(other.micros),
            tokens: self.tokens.saturating_add(other.tokens),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            micros: self.micros.saturating_sub(other.micros),
            tokens: self.tokens.saturating_sub(other.tokens),
        }
    }
}

/// Why a request may not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// What is in flight might use the rest up: ask again when some of it is settled.
    ForNow,
    /// Even with nothing in flight, the worst case is beyond the rest.
    ForGood,
}

impl Budget {
    /// A budget of which `spent` is gone.
    pub fn new(settings: &BudgetSettings, spent: Amount) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a budget is checked to be finite and at least 0"
        )]
        let micros = |money: f64| (money * 1e6).floor() as u64;
        Self {
            most_micros: settings.money.map_or(u64::MAX, micros),
            most_tokens: settings.tokens.unwrap_or(u64::MAX),
            state: Mutex::new(Balance {
                spent,
                reserved: Amount::default(),
            }),
        }
    }

    /// Sets the worst case of a request aside; returns all that is set aside now.
    ///
    /// # Errors
    /// When the budget could be passed.
    pub fn reserve(&self, worst: Amount) -> Result<Amount, Held> {
        let mut balance = self.lock();
        let after = balance.spent.plus(balance.reserved).plus(worst);
        if after.micros > self.most_micros || after.tokens > self.most_tokens {
            let alone = balance.spent.plus(worst);
            let never = alone.micros > self.most_micros || alone.tokens > self.most_tokens;
            return Err(if never { Held::ForGood } else { Held::ForNow });
        }
        balance.reserved = balance.reserved.plus(worst);
        Ok(balance.reserved)
    }

    /// The request that reserved `worst` is over and used this.
    pub fn settle(&self, worst: Amount, used: Amount) {
        let mut balance = self.lock();
        balance.reserved = balance.reserved.minus(worst);
        balance.spent = balance.spent.plus(used);
    }

    /// The error that what could take `worst` is beyond the rest.
    pub(crate) fn used_up(&self, worst: Amount) -> Error {
        let spent = self.spent();
        let (money, tokens) = (spent.micros as f64 / 1e6, spent.tokens);
        Error::Budget {
            spent: format!(
                "{money:.6} in money and {tokens} tokens are spent, and the next request could \
                 take {:.6} and {}",
                worst.micros as f64 / 1e6,
                worst.tokens
            ),
        }
    }

    /// What is set aside for requests in flight.
    pub fn reserved(&self) -> Amount {
        self.lock().reserved
    }

    /// What is spent.
    pub fn spent(&self) -> Amount {
        self.lock().spent
    }

    fn lock(&self) -> MutexGuard<'_, Balance> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_rounded_up_and_cached_tokens_cost_less() {
        let price = Price {
            input: 0.15,
            cached_input: Some(0.075),
            output: 0.6,
            request: 0.0,
            batch: Some(0.5),
        };
        assert_eq!(price.micros(1000, 0, 1), 151);
        assert_eq!(price.micros(1000, 800, 0), 90);
        assert_eq!(price.micros(1, 0, 0), 1);
        assert_eq!(Price::default().micros(1000, 0, 1000), 0);
        let of_search = Price {
            request: 0.002,
            ..Price::default()
        };
        assert_eq!(of_search.micros(7, 0, 0), 2000);
        let in_batches = price.in_batches();
        assert_eq!(in_batches.micros(1000, 800, 0), 45);
        assert_eq!(in_batches.in_batches(), in_batches);
        assert_eq!(of_search.in_batches(), of_search);
    }

    #[test]
    fn a_budget_counts_what_is_in_flight_at_its_worst() {
        let settings = BudgetSettings {
            money: Some(0.001),
            tokens: None,
        };
        let of = |micros| Amount { micros, tokens: 10 };
        let budget = Budget::new(&settings, of(400));
        assert_eq!(budget.reserve(of(300)).unwrap().micros, 300);
        assert_eq!(budget.reserve(of(300)).unwrap().micros, 600);
        assert_eq!(budget.reserve(of(1)), Err(Held::ForNow));
        assert_eq!(budget.reserve(of(601)), Err(Held::ForGood));
        budget.settle(of(300), of(100));
        assert_eq!(budget.reserve(of(200)).unwrap().micros, 500);
        // A teacher that used more than its worst case is on the bill too.
        budget.settle(of(200), of(600));
        assert_eq!(budget.spent().micros, 1100);
        assert_eq!(budget.reserve(of(0)), Err(Held::ForGood));
    }
}
