//! The hand-written vocabulary the shop is made from, read from the TOML files beside this one.
//!
//! Lists are written on one line with bars between the items, or as one item a line, so that the
//! files stay dense enough to read as tables.

use serde::{Deserialize, Deserializer, de::Error};

use super::Split;

const BRANDS: &str = include_str!("brands.toml");
const DEPARTMENTS: [&str; 4] = [
    include_str!("tools.toml"),
    include_str!("building.toml"),
    include_str!("garden.toml"),
    include_str!("home.toml"),
];

/// Everything the generator can say.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) pools: Vec<Pool>,
    pub(super) families: Vec<Family>,
}

impl Vocabulary {
    /// The vocabulary this crate was built with.
    pub(super) fn embedded() -> Self {
        Self::read().expect("the embedded vocabulary is well-formed, as a unit test checks")
    }

    fn read() -> Result<Self, toml::de::Error> {
        let brands: Brands = toml::from_str(BRANDS)?;
        let mut families = Vec::new();
        for file in DEPARTMENTS {
            let department: Department = toml::from_str(file)?;
            families.extend(department.family);
        }
        Ok(Self {
            pools: brands.pool,
            families,
        })
    }

    /// Every product type with the family it belongs to.
    pub(super) fn types(&self) -> impl Iterator<Item = (&Family, &ProductType)> {
        self.families
            .iter()
            .flat_map(|family| family.types.iter().map(move |kind| (family, kind)))
    }

    /// The brands a family's products carry.
    pub(super) fn pool(&self, family: &Family) -> &Pool {
        self.pools
            .iter()
            .find(|pool| pool.name == family.pool)
            .expect("every family names a pool, as a unit test checks")
    }
}

/// The brands of a department, and the phrases its titles and texts share.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    pub(super) name: String,
    /// Whether titles may carry made-up model numbers.
    pub(super) codes: bool,
    #[serde(deserialize_with = "items")]
    pub(super) brands: Vec<String>,
    #[serde(deserialize_with = "items")]
    pub(super) lines: Vec<String>,
    #[serde(deserialize_with = "items")]
    pub(super) tails: Vec<String>,
}

/// Product types that are related or easily confused, and so share a split.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Family {
    pub(super) split: Split,
    pub(super) pool: String,
    #[serde(rename = "type")]
    pub(super) types: Vec<ProductType>,
}

/// One kind of product.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProductType {
    /// What titles and queries call it; the first is its name everywhere else.
    #[serde(deserialize_with = "items")]
    pub(super) names: Vec<String>,
    /// What only shoppers call it.
    #[serde(default, deserialize_with = "items")]
    pub(super) ask: Vec<String>,
    /// What shoppers call it once they have said what it is a part for.
    #[serde(default, deserialize_with = "items")]
    pub(super) part: Vec<String>,
    /// Words before the name that state no attribute.
    #[serde(deserialize_with = "items")]
    pub(super) mods: Vec<String>,
    /// Phrases after the name that state no attribute.
    #[serde(deserialize_with = "items")]
    pub(super) extras: Vec<String>,
    #[serde(rename = "attrs", deserialize_with = "attributes")]
    pub(super) attributes: Vec<Attribute>,
    /// Sentences for descriptions.
    #[serde(deserialize_with = "items")]
    pub(super) says: Vec<String>,
    /// Needs it answers, in words that do not name it.
    #[serde(deserialize_with = "use_cases")]
    pub(super) uses: Vec<UseCase>,
    /// The types it is an accessory or part for.
    #[serde(default, deserialize_with = "items")]
    pub(super) fits: Vec<String>,
    /// Other types it is used together with.
    #[serde(default, deserialize_with = "items")]
    pub(super) goes: Vec<String>,
    /// Types that do the same job less exactly.
    #[serde(default, deserialize_with = "items")]
    pub(super) subs: Vec<String>,
}

impl ProductType {
    /// The name the type goes by.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The attribute of that name.
    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name == name)
    }
}

/// An attribute and its values, the popular ones first: `name: a | b`, where a name that ends in
/// `!` is hard, and one that ends in `~` is said after its value ("13 mm chuck").
#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) name: String,
    pub(super) hard: bool,
    pub(super) labelled: bool,
    pub(super) values: Vec<String>,
}

impl Attribute {
    fn parse(line: &str) -> Option<Self> {
        let (head, values) = line.split_once(": ")?;
        Some(Self {
            name: head.trim_end_matches(['!', '~']).to_owned(),
            hard: head.contains('!'),
            labelled: head.contains('~'),
            values: split(values),
        })
    }
}

/// A need: `text`, `text + another type that answers it`, `text @ attribute=value`.
#[derive(Debug)]
pub(super) struct UseCase {
    pub(super) text: String,
    pub(super) also: Vec<String>,
    pub(super) requires: Option<(String, String)>,
}

impl UseCase {
    fn parse(line: &str) -> Option<Self> {
        let (line, requires) = match line.split_once(" @ ") {
            Some((line, requires)) => {
                let (attribute, value) = requires.split_once('=')?;
                (line, Some((attribute.to_owned(), value.to_owned())))
            }
            None => (line, None),
        };
        let mut parts = line.split(" + ").map(str::to_owned);
        Some(Self {
            text: parts.next()?,
            also: parts.collect(),
            requires,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Brands {
    pool: Vec<Pool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Department {
    family: Vec<Family>,
}

fn split(text: &str) -> Vec<String> {
    text.split(['|', '\n'])
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn items<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    String::deserialize(deserializer).map(|text| split(&text))
}

fn attributes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Attribute>, D::Error> {
    lines(deserializer, Attribute::parse)
}

fn use_cases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<UseCase>, D::Error> {
    lines(deserializer, UseCase::parse)
}

fn lines<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, D::Error> {
    String::deserialize(deserializer)?
        .lines()
        .map(|line| parse(line).ok_or_else(|| D::Error::custom(format!("cannot read `{line}`"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn is_well_formed() {
        let vocabulary = Vocabulary::read().expect("the files parse");
        let splits: BTreeMap<&str, Split> = vocabulary
            .types()
            .map(|(family, kind)| (kind.name(), family.split))
            .collect();
        assert_eq!(
            splits.len(),
            vocabulary.types().count(),
            "type names are unique"
        );
        for family in &vocabulary.families {
            assert!(
                vocabulary.pools.iter().any(|pool| pool.name == family.pool),
                "no pool `{}`",
                family.pool
            );
        }
        for (family, kind) in vocabulary.types() {
            for other in kind.fits.iter().chain(&kind.goes).chain(&kind.subs) {
                assert!(
                    splits.contains_key(other.as_str()),
                    "{}: `{other}`",
                    kind.name()
                );
            }
            for other in kind
                .fits
                .iter()
                .chain(kind.uses.iter().flat_map(|need| &need.also))
            {
                assert_eq!(
                    splits[other.as_str()],
                    family.split,
                    "{}: `{other}`",
                    kind.name()
                );
            }
            for need in &kind.uses {
                if let Some((attribute, value)) = &need.requires {
                    assert!(
                        kind.attribute(attribute)
                            .expect("a declared attribute")
                            .values
                            .contains(value),
                        "{}",
                        need.text
                    );
                }
            }
        }
    }

    #[test]
    fn needs_do_not_name_what_they_ask_for() {
        let vocabulary = Vocabulary::embedded();
        for (_, kind) in vocabulary.types() {
            for need in &kind.uses {
                for name in &kind.names {
                    assert!(
                        !need.text.contains(name.as_str()),
                        "`{}` names {name}",
                        need.text
                    );
                }
            }
        }
    }
}
