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

    /// Of a request that may have been answered, and nobody says what that took: all that was set
    /// aside for it. What is beyond the most that it can read counts as written.
    pub(crate) fn at_worst((read, _): (u64, u64), reserved: Amount) -> Self {
        Self {
            input_tokens: read,
            cached_tokens: 0,
            output_tokens: reserved.tokens.saturating_sub(read),
            micros: reserved.micros,
            estimated: true,
        }
    }

    /// How many times a worst case it is.
    pub(crate) fn over(&self, worst: Amount) -> f64 {
        let over = |used: u64, worst: u64| used as f64 / worst.max(1) as f64;
        over(self.tokens(), worst.tokens).max(over(self.micros, worst.micros))
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

    /// What tokens that were used come to: those of the prompt, of them those that the server had
    /// at hand, and those written.
    pub(crate) fn usage(&self, (input, cached, output): (u64, u64, u64)) -> Usage {
        Usage {
            input_tokens: input,
            cached_tokens: cached,
            output_tokens: output,
            micros: self.micros(input, cached, output),
            estimated: false,
        }
    }

    /// What a request can't cost more than that reads and writes so many tokens at most.
    pub(crate) fn worst(&self, (read, written): (u64, u64)) -> Amount {
        Amount {
            micros: self.micros(read, 0, written),
            tokens: read + written,
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
///
/// What is reserved is on record before it is sent, so that a kill can be booked at its worst. A
/// commit for each request would be one too many, so each commit that is made anyway puts a little
/// more on record than is reserved: [`Budget::to_record`].
pub struct Budget {
    /// Without what is set aside.
    most: Amount,
    /// For batches that are out.
    set_aside: Amount,
    state: Mutex<Balance>,
}

#[derive(Clone, Copy, Default)]
struct Balance {
    spent: Amount,
    reserved: Amount,
    /// How much may be reserved before more has to be put on record.
    on_record: Amount,
}

/// Requests differ in size: without room for that, replacing one by another that is a bit longer
/// would take a commit of its own. An eighth is what a kill may be booked at too much.
const ROOM: u64 = 8;

/// Money and tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Millionths of the currency.
    pub micros: u64,
    /// Tokens in and out.
    pub tokens: u64,
}

impl Amount {
    /// Neither money nor tokens.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

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

    fn min(self, other: Self) -> Self {
        Self {
            micros: self.micros.min(other.micros),
            tokens: self.tokens.min(other.tokens),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            micros: self.micros.max(other.micros),
            tokens: self.tokens.max(other.tokens),
        }
    }

    /// Whether it is no more than another, of money and of tokens.
    fn is_within(self, other: Self) -> bool {
        self.micros <= other.micros && self.tokens <= other.tokens
    }
}

/// What a request that is over had set aside, and what it used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What it could not cost more than.
    pub worst: Amount,
    /// What it did cost.
    pub used: Amount,
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
            most: Amount {
                micros: settings.money.map_or(u64::MAX, micros),
                tokens: settings.tokens.unwrap_or(u64::MAX),
            },
            set_aside: Amount::default(),
            state: Mutex::new(Balance {
                spent,
                ..Balance::default()
            }),
        }
    }

    /// This budget where so much of it is set aside for batches that are out, their worst case.
    pub(crate) fn without(self, set_aside: Amount) -> Self {
        Self {
            most: self.most.minus(set_aside),
            set_aside,
            ..self
        }
    }

    /// Sets the worst case of a request aside. Whether that is on record: if not, the request must
    /// wait for a commit that begins after this.
    ///
    /// # Errors
    /// When the budget could be passed.
    pub fn reserve(&self, worst: Amount) -> Result<bool, Held> {
        let mut balance = self.lock();
        let after = balance.spent.plus(balance.reserved).plus(worst);
        if !after.is_within(self.most) {
            let can_ever = balance.spent.plus(worst).is_within(self.most);
            return Err(if can_ever {
                Held::ForNow
            } else {
                Held::ForGood
            });
        }
        balance.reserved = balance.reserved.plus(worst);
        Ok(balance.reserved.is_within(balance.on_record))
    }

    /// Gives back what a request set aside that was not sent.
    pub fn give_back(&self, worst: Amount) {
        let mut balance = self.lock();
        balance.reserved = balance.reserved.minus(worst);
    }

    /// What a commit that begins now is to put on record as at risk; with it, the attempts of these
    /// requests go on record as what they were. Never less than is reserved by others, and at most
    /// an eighth more; nor more than is left of the budget, unless that is passed already.
    pub fn to_record(&self, settled: &[Settled]) -> Amount {
        let mut balance = self.lock();
        let after = balance.without(settled);
        let Amount { micros, tokens } = after.reserved;
        let room = Amount {
            micros: micros / ROOM,
            tokens: tokens / ROOM,
        };
        let left = self.most.minus(after.spent);
        let at_risk = after.reserved.plus(room).min(left).max(after.reserved);
        // Until the commit is on disk, it is what was on record before that counts.
        let settling = balance.reserved.minus(after.reserved);
        balance.on_record = balance.on_record.min(at_risk.plus(settling));
        at_risk
    }

    /// That commit is on disk.
    pub fn recorded(&self, settled: &[Settled], at_risk: Amount) {
        let mut balance = self.lock();
        *balance = balance.without(settled);
        balance.on_record = at_risk;
    }

    /// The error that what could take `worst` is beyond the rest.
    pub(crate) fn used_up(&self, worst: Amount) -> Error {
        let spent = self.spent();
        let (money, tokens) = (spent.micros as f64 / 1e6, spent.tokens);
        let set_aside = match self.set_aside {
            none if none.is_zero() => String::new(),
            Amount { micros, tokens } => format!(
                ", {:.6} and {tokens} are set aside for batches that are out",
                micros as f64 / 1e6
            ),
        };
        Error::Budget {
            spent: format!(
                "{money:.6} in money and {tokens} tokens are spent{set_aside}, and the next request \
                 could take {:.6} and {}",
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

impl Balance {
    /// Once these requests are settled.
    fn without(mut self, settled: &[Settled]) -> Self {
        for Settled { worst, used } in settled {
            self.reserved = self.reserved.minus(*worst);
            self.spent = self.spent.plus(*used);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        assert_eq!(price.in_batches().micros(1000, 800, 0), 45);
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
        let settle = |worst, used| {
            let settled = [Settled {
                worst: of(worst),
                used: of(used),
            }];
            budget.recorded(&settled, budget.to_record(&settled));
        };
        assert!(budget.reserve(of(300)).is_ok());
        assert!(budget.reserve(of(300)).is_ok());
        assert_eq!(budget.reserved().micros, 600);
        assert_eq!(budget.reserve(of(1)), Err(Held::ForNow));
        assert_eq!(budget.reserve(of(601)), Err(Held::ForGood));
        settle(300, 100);
        assert!(budget.reserve(of(200)).is_ok());
        assert_eq!(budget.reserved().micros, 500);
        budget.give_back(of(200));
        assert_eq!(budget.reserved().micros, 300);
        // A teacher that used more than its worst case is on the bill too.
        settle(300, 600);
        assert_eq!(budget.spent().micros, 1100);
        assert_eq!(budget.reserve(of(0)), Err(Held::ForGood));
    }

    /// One step of a job.
    #[derive(Clone, Debug)]
    enum Step {
        /// A request is to be sent.
        Reserve(u64),
        /// It is not, after all.
        GiveBack,
        /// The writer begins a commit with the replies to so many per cent of those in flight.
        Begin(usize),
        /// The commit is on disk.
        End,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..1000_u64).prop_map(Step::Reserve),
            1 => Just(Step::GiveBack),
            2 => (0..=100_usize).prop_map(Step::Begin),
            2 => Just(Step::End),
        ]
    }

    proptest! {
        #[test]
        fn what_may_be_in_flight_is_on_record_and_hardly_more(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let settings = BudgetSettings { money: None, tokens: Some(20_000) };
            let of = |tokens| Amount { micros: 0, tokens };
            let budget = Budget::new(&settings, of(0));
            // Requests in flight, and those that wait for a commit to be sent.
            let (mut in_flight, mut waiting) = (Vec::new(), Vec::new());
            let (mut on_disk, mut spent_on_disk) = (0, 0);
            let mut commit: Option<(Vec<Settled>, Amount, usize)> = None;
            for step in steps {
                match step {
                    Step::Reserve(tokens) => match budget.reserve(of(tokens)) {
                        Ok(true) => in_flight.push(tokens),
                        Ok(false) => waiting.push(tokens),
                        Err(_) => {}
                    },
                    Step::GiveBack => if let Some(tokens) = waiting.pop() {
                        budget.give_back(of(tokens));
                        if let Some((.., covered)) = &mut commit {
                            *covered = waiting.len().min(*covered);
                        }
                    },
                    Step::Begin(percent) if commit.is_none() => {
                        let count = in_flight.len() * percent / 100;
                        let settled: Vec<Settled> = in_flight[..count].iter()
                            .map(|tokens| Settled { worst: of(*tokens), used: of(tokens / 2) })
                            .collect();
                        let at_risk = budget.to_record(&settled);
                        commit = Some((settled, at_risk, waiting.len()));
                    }
                    Step::End => if let Some((settled, at_risk, covered)) = commit.take() {
                        in_flight.drain(..settled.len());
                        on_disk = at_risk.tokens;
                        spent_on_disk += settled.iter().map(|one| one.used.tokens).sum::<u64>();
                        budget.recorded(&settled, at_risk);
                        in_flight.extend(waiting.drain(..covered));
                    }
                    Step::Begin(_) => {}
                }
                let at_worst: u64 = in_flight.iter().sum();
                prop_assert!(at_worst <= on_disk, "{at_worst} in flight, {on_disk} on record");
                prop_assert!(spent_on_disk + on_disk <= 20_000, "a kill passes the budget");
                if commit.is_none() {
                    let waiting: u64 = waiting.iter().sum();
                    prop_assert_eq!(budget.reserved().tokens, at_worst + waiting);
                }
            }
            let reserved = budget.reserved().tokens;
            prop_assert!(budget.to_record(&[]).tokens <= reserved + reserved / 8);
        }
    }
}
