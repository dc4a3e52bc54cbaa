//! Deals the products of a type: attribute values, then a title and a text that state them.

use std::collections::BTreeMap;

use rand::{
    RngExt,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;

use super::{
    Product,
    vocabulary::{Pool, ProductType},
    wording::{Units, capitalised, follows, leans, phrase, spell, title_case},
};

/// How many products each type has.
const PER_TYPE: usize = 16;
/// How many brands make each type.
const BRANDS_PER_TYPE: usize = 5;
/// About how many words a title may have.
const TITLE_WORDS: usize = 10;

/// The products of one type, without their ids.
pub(super) fn stock(kind: &ProductType, pool: &Pool, rng: &mut ChaCha8Rng) -> Vec<Product> {
    let mut brands = pool.brands.clone();
    brands.shuffle(rng);
    brands.truncate(BRANDS_PER_TYPE);
    let brands = deal(&brands, rng);
    let values: Vec<Vec<String>> = kind
        .attributes
        .iter()
        .map(|attribute| deal(&attribute.values, rng))
        .collect();

    let mut products: Vec<Product> = Vec::with_capacity(PER_TYPE);
    for (place, brand) in brands.iter().enumerate() {
        let card = Card {
            kind,
            pool,
            brand,
            values: values.iter().map(|column| column[place].as_str()).collect(),
        };
        // Two products may be alike, but never word for word.
        let product = loop {
            let product = card.product(rng);
            if !products
                .iter()
                .any(|other| other.title == product.title || other.text == product.text)
            {
                break product;
            }
        };
        products.push(product);
    }
    products
}

/// One value per product: each at least once, and the first half of the list twice as often.
fn deal(values: &[String], rng: &mut ChaCha8Rng) -> Vec<String> {
    let popular = &values[..values.len().div_ceil(2)];
    let mut dealt: Vec<String> = values
        .iter()
        .chain(popular)
        .cycle()
        .take(PER_TYPE)
        .cloned()
        .collect();
    dealt.shuffle(rng);
    dealt
}

/// What is true of a product, before it is put into words.
struct Card<'a> {
    kind: &'a ProductType,
    pool: &'a Pool,
    brand: &'a str,
    values: Vec<&'a str>,
}

impl Card<'_> {
    fn product(&self, rng: &mut ChaCha8Rng) -> Product {
        // The first attribute matters most, so nearly every title states it.
        let titled: Vec<bool> = (0..self.values.len())
            .map(|place| rng.random_bool(if place == 0 { 0.85 } else { 0.4 }))
            .collect();
        let title = self.title(&titled, rng);
        let description = self.description(rng);
        let text = self.text(&titled, &description, rng);
        let attributes: BTreeMap<String, String> = self
            .kind
            .attributes
            .iter()
            .zip(&self.values)
            .map(|(attribute, value)| (attribute.name.clone(), (*value).to_owned()))
            .collect();
        Product {
            id: String::new(),
            title,
            brand: self.brand.to_owned(),
            product_type: self.kind.name().to_owned(),
            attributes,
            description,
            text,
        }
    }

    fn title(&self, titled: &[bool], rng: &mut ChaCha8Rng) -> String {
        let units = Units::pick(rng);
        let name = self.name(rng);
        let line = if rng.random_bool(0.35) {
            self.line(rng)
        } else {
            String::new()
        };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for ((attribute, value), _) in self
            .kind
            .attributes
            .iter()
            .zip(&self.values)
            .zip(titled)
            .filter(|(_, titled)| **titled)
        {
            let side = if follows(attribute, value) {
                &mut after
            } else {
                &mut before
            };
            side.push(phrase(attribute, value, units));
        }
        if let Some(word) = self.kind.mods.choose(rng).filter(|_| rng.random_bool(0.4))
            && !before.iter().any(|other| other.contains(word.as_str()))
            && !name.contains(word.as_str())
        {
            before.insert(rng.random_range(0..=before.len()), word.clone());
        }
        let words: usize = before
            .iter()
            .chain(&after)
            .map(|phrase| phrase.split(' ').count())
            .sum();
        // Accessories say what they are for, and so use the words of another type.
        let accessory = !self.kind.fits.is_empty();
        if words < TITLE_WORDS - 4
            && rng.random_bool(if accessory { 0.7 } else { 0.4 })
            && let Some(extra) = self.kind.extras.choose(rng)
            && (accessory || !after.iter().any(|other| opens_alike(other, extra)))
        {
            after.push(extra.clone());
        }

        let brand = self.brand;
        let before_name = before.join(" ");
        let listed = before.join(", ");
        let title = match rng.random_range(0..8) {
            0 | 1 => trailed(&joined(&[brand, &line, &before_name, name]), &after),
            2 => trailed(&joined(&[&before_name, name]), &after) + " by " + brand,
            3 => trailed(&joined(&[brand, &line, name]), &[before, after].concat()),
            4 => trailed(name, &[before, after].concat()) + " - " + &joined(&[brand, &line]),
            5 if !before.is_empty() => trailed(
                &format!("{} - {listed}", joined(&[brand, &line, name])),
                &after,
            ),
            6 => joined(&[brand, &trailed(&joined(&[&before_name, name]), &after)]),
            _ => trailed(&joined(&[&before_name, brand, &line, name]), &after),
        };
        if rng.random_bool(0.45) {
            title_case(&title)
        } else {
            capitalised(&title)
        }
    }

    fn text(&self, titled: &[bool], description: &str, rng: &mut ChaCha8Rng) -> String {
        let units = if rng.random_bool(0.7) {
            Units::Spaced
        } else {
            Units::pick(rng)
        };
        let labels = rng.random_bool(0.15);
        let facts: Vec<String> = self
            .kind
            .attributes
            .iter()
            .zip(&self.values)
            .zip(titled)
            // Whatever the title leaves out has to be here, or nobody could tell.
            .filter(|(_, titled)| !**titled || rng.random_bool(0.35))
            .map(|((attribute, value), _)| {
                if labels {
                    format!("{}: {}", attribute.name, spell(value, units))
                } else {
                    phrase(attribute, value, units)
                }
            })
            .collect();
        let brand = self.brand;
        if facts.is_empty() {
            return format!("{brand}. {description}");
        }
        let list = capitalised(&facts.join(if labels { "; " } else { ", " }));
        match rng.random_range(0..6) {
            0 | 1 => format!("{brand}. {list}. {description}"),
            2 => format!("{description} {list}. By {brand}."),
            3 => format!("{list}. {description} {brand}."),
            4 => format!("{description} {brand}: {}.", facts.join(", ")),
            _ => format!(
                "{brand} {}: {}. {description}",
                self.name(rng),
                facts.join(", ")
            ),
        }
    }

    fn description(&self, rng: &mut ChaCha8Rng) -> String {
        let count = if rng.random_bool(0.65) { 2 } else { 1 };
        let mut says = self.kind.says.clone();
        says.shuffle(rng);
        says.truncate(count);
        if rng.random_bool(0.2) {
            says.extend(self.pool.tails.choose(rng).cloned());
        }
        says.join(" ")
    }

    fn name(&self, rng: &mut ChaCha8Rng) -> &str {
        let name = self.kind.names.choose(rng).filter(|_| rng.random_bool(0.7));
        name.map_or(self.kind.name(), String::as_str)
    }

    /// A range name, or a model number.
    fn line(&self, rng: &mut ChaCha8Rng) -> String {
        if self.pool.codes && rng.random_bool(0.6) {
            let letters =
                self.brand[..1].to_owned() + ["X", "D", "R", "TS", ""].choose(rng).unwrap_or(&"");
            let number = rng.random_range(11..99) * [1, 5, 10].choose(rng).unwrap_or(&1);
            let dash = if rng.random_bool(0.3) { "-" } else { "" };
            format!("{letters}{dash}{number}")
        } else {
            self.pool.lines.choose(rng).cloned().unwrap_or_default()
        }
    }
}

/// Whether two phrases begin with the same preposition.
fn opens_alike(one: &str, other: &str) -> bool {
    leans(one) && one.split(' ').next() == other.split(' ').next()
}

/// The words that are there, with spaces between.
fn joined(words: &[&str]) -> String {
    words
        .iter()
        .filter(|word| !word.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(" ")
}

/// A head and the phrases after it; only the first may do without a comma.
fn trailed(head: &str, phrases: &[String]) -> String {
    let mut title = head.to_owned();
    for (place, phrase) in phrases.iter().enumerate() {
        title.push_str(if place == 0 && leans(phrase) {
            " "
        } else {
            ", "
        });
        title.push_str(phrase);
    }
    title
}
