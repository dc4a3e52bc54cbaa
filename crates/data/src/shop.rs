//! The demo set: a made-up home-and-hardware shop, its shoppers' queries, and the relevance of
//! every product to every query, all from a seed.
//!
//! # Relevance
//!
//! A query asks for a product type and may state constraints: a brand, attribute values. What a
//! product is worth follows from its type's relation to the type asked for and from the worst
//! constraint it violates. Some attributes are *hard*: a wrong voltage, thread, diameter or bed
//! size is of no use. The others, and the brand, are *soft*.
//!
//! | the product's type is       | nothing violated | a soft one violated | a hard one violated |
//! |-----------------------------|------------------|---------------------|---------------------|
//! | the type asked for          | 3 exact          | 2 substitute        | 1                   |
//! | a declared substitute of it | 2 substitute     | 1                   | 0                   |
//! | a complement of it          | 1 complement     | 1 complement        | 0                   |
//! | any other                   | 0 irrelevant     | 0                   | 0                   |
//!
//! Complements are accessories and parts for the type asked for, what it is itself a part for, and
//! what is used together with it. A product violates a constraint when it has the attribute with
//! another value; between different types only if its type comes with the value asked for at all,
//! since otherwise the two merely share an attribute's name.
//!
//! # Splits
//!
//! Every product type belongs to one split, along with the types related to it or easily confused
//! with it, and a query belongs to the split of the type it asks for. So a test query asks for
//! things no training query named. The products of all types are in one catalogue.

mod products;
mod queries;
mod vocabulary;
mod wording;
mod writing;

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use vocabulary::Vocabulary;

/// The seed of the committed demo set.
pub const SEED: u64 = 42;

/// A made-up shop: what it sells, what shoppers ask for, and what answers them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shop {
    /// The catalogue, by id.
    pub products: Vec<Product>,
    /// The queries of all splits, by id.
    pub queries: Vec<ShopQuery>,
    /// Query id, product id and gain of every pair with a gain above zero, by id.
    pub qrels: Vec<(String, String, u8)>,
    relations: Relations,
}

/// A product of the shop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Product {
    /// `p0001` and so on.
    pub id: String,
    /// What a result list shows.
    pub title: String,
    /// The made-up maker.
    pub brand: String,
    /// What kind of product it is.
    pub product_type: String,
    /// Attribute values, by the attribute's name.
    pub attributes: BTreeMap<String, String>,
    /// A line of advertisement.
    pub description: String,
    #[serde(skip)]
    text: String,
}

impl Product {
    /// What a search engine indexes besides the title: brand, attributes and description as the
    /// shop would write them.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A shopper's query, with what is known about the need behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShopQuery {
    /// `q001` and so on.
    pub id: String,
    /// What the shopper types.
    pub text: String,
    /// How the need is put.
    pub kind: QueryKind,
    /// The split of the type asked for.
    pub split: Split,
    /// The type asked for.
    pub product_type: String,
    /// Other types that answer the query just as well.
    pub also: Vec<String>,
    /// The brand asked for.
    pub brand: Option<String>,
    /// The attribute values asked for.
    pub constraints: Vec<Constraint>,
}

/// An attribute value a query states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// The attribute's name.
    pub attribute: String,
    /// The value it has to have.
    pub value: String,
    /// Whether a product with another value is of no use.
    pub hard: bool,
}

impl Constraint {
    fn holds(&self, product: &Product) -> bool {
        product.attributes.get(&self.attribute) == Some(&self.value)
    }
}

/// Which part of an experiment a query is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Training.
    Train,
    /// Choosing between settings and checkpoints.
    Dev,
    /// The final measurement.
    Test,
}

/// How a query puts its need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryKind {
    /// The bare type: "mattress".
    Type,
    /// The type and one or two attribute values: "12v drill".
    TypeAttributes,
    /// The type and a brand.
    Brand,
    /// What is to be done, without the type: "thing to unclog kitchen sink".
    UseCase,
    /// A type, perhaps with attributes, and a slip in the spelling.
    Misspelt,
    /// An accessory or part, by what it is for: "bits for my sds drill".
    PartFor,
}

/// Makes the shop of that seed; the same seed makes the same shop.
pub fn generate(seed: u64) -> Shop {
    let vocabulary = Vocabulary::embedded();
    let mut products = Vec::new();
    for (stream, (family, kind)) in (1..).zip(vocabulary.types()) {
        // A stream of its own keeps a type's products as they are when another type is edited.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        products.extend(products::stock(kind, vocabulary.pool(family), &mut rng));
    }
    for (place, product) in products.iter_mut().enumerate() {
        product.id = format!("p{:04}", place + 1);
    }
    let queries = queries::ask(&vocabulary, &products, &mut ChaCha8Rng::seed_from_u64(seed));
    let relations = Relations::new(&vocabulary);

    let mut shop = Shop {
        products,
        queries,
        qrels: Vec::new(),
        relations,
    };
    shop.qrels = shop.judged();
    shop
}

impl Shop {
    /// What the product is worth to the query, by the rule in the module's documentation.
    pub fn gain(&self, query: &ShopQuery, product: &Product) -> u8 {
        match (
            self.relation(query, product),
            self.violation(query, product),
        ) {
            (Relation::Asked, Violation::None) => 3,
            (Relation::Asked, Violation::Soft) | (Relation::Substitute, Violation::None) => 2,
            (Relation::Asked, Violation::Hard)
            | (Relation::Substitute, Violation::Soft)
            | (Relation::Complement, Violation::None | Violation::Soft) => 1,
            (Relation::Substitute | Relation::Complement, Violation::Hard)
            | (Relation::None, _) => 0,
        }
    }

    fn judged(&self) -> Vec<(String, String, u8)> {
        let pairs = self
            .queries
            .iter()
            .flat_map(|query| self.products.iter().map(move |product| (query, product)));
        pairs
            .map(|(query, product)| {
                (
                    query.id.clone(),
                    product.id.clone(),
                    self.gain(query, product),
                )
            })
            .filter(|(_, _, gain)| *gain > 0)
            .collect()
    }

    fn relation(&self, query: &ShopQuery, product: &Product) -> Relation {
        let asked = || std::iter::once(&query.product_type).chain(&query.also);
        let related = |pairs: &BTreeSet<(String, String)>| {
            asked().any(|kind| pairs.contains(&(kind.clone(), product.product_type.clone())))
        };
        if asked().any(|kind| *kind == product.product_type) {
            Relation::Asked
        } else if related(&self.relations.substitutes) {
            Relation::Substitute
        } else if related(&self.relations.complements) {
            Relation::Complement
        } else {
            Relation::None
        }
    }

    fn violation(&self, query: &ShopQuery, product: &Product) -> Violation {
        let brand = query
            .brand
            .as_ref()
            .filter(|brand| **brand != product.brand)
            .map(|_| Violation::Soft);
        let violated = query.constraints.iter().filter(|constraint| {
            !constraint.holds(product)
                && self.relations.comes_with(&product.product_type, constraint)
        });
        let values = violated.map(|constraint| {
            if constraint.hard {
                Violation::Hard
            } else {
                Violation::Soft
            }
        });
        values.chain(brand).max().unwrap_or(Violation::None)
    }
}

/// How a product's type stands to the type asked for.
enum Relation {
    Asked,
    Substitute,
    Complement,
    None,
}

/// The worst of the constraints a product violates.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Violation {
    None,
    Soft,
    Hard,
}

/// What is known about product types: which stand for or go with which, and the values each
/// comes with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Relations {
    substitutes: BTreeSet<(String, String)>,
    complements: BTreeSet<(String, String)>,
    values: BTreeSet<(String, String, String)>,
}

impl Relations {
    fn new(vocabulary: &Vocabulary) -> Self {
        let mut relations = Self {
            substitutes: BTreeSet::new(),
            complements: BTreeSet::new(),
            values: BTreeSet::new(),
        };
        for (_, kind) in vocabulary.types() {
            let name = || kind.name().to_owned();
            let both_ways = |other: &String| [(name(), other.clone()), (other.clone(), name())];
            relations
                .substitutes
                .extend(kind.subs.iter().flat_map(both_ways));
            relations
                .complements
                .extend(kind.fits.iter().chain(&kind.goes).flat_map(both_ways));
            for attribute in &kind.attributes {
                relations.values.extend(
                    attribute
                        .values
                        .iter()
                        .map(|value| (name(), attribute.name.clone(), value.clone())),
                );
            }
        }
        relations
    }

    fn comes_with(&self, product_type: &str, constraint: &Constraint) -> bool {
        self.values.contains(&(
            product_type.to_owned(),
            constraint.attribute.clone(),
            constraint.value.clone(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(product_type: &str, constraints: &[(&str, &str, bool)]) -> ShopQuery {
        ShopQuery {
            id: "q".to_owned(),
            text: String::new(),
            kind: QueryKind::Type,
            split: Split::Test,
            product_type: product_type.to_owned(),
            also: Vec::new(),
            brand: None,
            constraints: constraints
                .iter()
                .map(|(attribute, value, hard)| Constraint {
                    attribute: (*attribute).to_owned(),
                    value: (*value).to_owned(),
                    hard: *hard,
                })
                .collect(),
        }
    }

    /// The gains that products of a type with an attribute value have for the query.
    fn gains(
        shop: &Shop,
        query: &ShopQuery,
        product_type: &str,
        attribute: &str,
        value: &str,
    ) -> BTreeSet<u8> {
        let products = shop.products.iter().filter(|product| {
            product.product_type == product_type
                && product
                    .attributes
                    .get(attribute)
                    .is_some_and(|own| own == value)
        });
        products.map(|product| shop.gain(query, product)).collect()
    }

    fn holds_phrase(text: &str, phrase: &str) -> bool {
        format!(" {} ", text.to_lowercase()).contains(&format!(" {} ", phrase.to_lowercase()))
    }

    #[test]
    fn a_seed_makes_one_shop() {
        assert_eq!(generate(7), generate(7));
        assert_ne!(generate(7).products, generate(8).products);
    }

    #[test]
    fn the_shop_is_large_enough() {
        let shop = generate(1);
        assert!(
            shop.products.len() >= 2_000,
            "{} products",
            shop.products.len()
        );
        let mut kinds: BTreeMap<(Split, QueryKind), usize> = BTreeMap::new();
        for query in &shop.queries {
            *kinds.entry((query.split, query.kind)).or_default() += 1;
        }
        assert_eq!(kinds.len(), 18, "every kind in every split");
        assert!(kinds.values().all(|count| *count >= 3), "{kinds:?}");
        assert_eq!(shop.queries.len(), 460);
    }

    #[test]
    fn nothing_comes_twice() {
        let shop = generate(1);
        let products: BTreeSet<_> = shop
            .products
            .iter()
            .map(|product| (&product.title, product.text()))
            .collect();
        assert_eq!(products.len(), shop.products.len());
        let queries: BTreeSet<_> = shop
            .queries
            .iter()
            .map(|query| query.text.to_lowercase())
            .collect();
        assert_eq!(queries.len(), shop.queries.len());
    }

    #[test]
    fn every_query_has_an_exact_answer() {
        for seed in [1, 2] {
            let shop = generate(seed);
            let answered: BTreeSet<_> = shop
                .qrels
                .iter()
                .filter(|(_, _, gain)| *gain == 3)
                .map(|(query, _, _)| query)
                .collect();
            assert_eq!(answered.len(), shop.queries.len());
            assert!(shop.qrels.is_sorted());
        }
    }

    #[test]
    fn training_queries_do_not_name_what_is_tested() {
        let vocabulary = Vocabulary::embedded();
        for query in generate(1)
            .queries
            .iter()
            .filter(|query| query.split == Split::Train)
        {
            for (_, kind) in vocabulary
                .types()
                .filter(|(family, _)| family.split != Split::Train)
            {
                for name in kind.names.iter().chain(&kind.ask) {
                    assert!(
                        !holds_phrase(&query.text, name),
                        "`{}` names {name}",
                        query.text
                    );
                }
            }
        }
    }

    #[test]
    fn an_accessory_that_names_the_tool_is_only_a_complement() {
        let shop = generate(1);
        let drill = query("cordless drill", &[]);
        let bits = shop
            .products
            .iter()
            .filter(|product| product.product_type == "drill bit set");
        assert!(
            bits.clone()
                .any(|product| product.title.to_lowercase().contains("cordless drill"))
        );
        assert!(bits.clone().all(|product| shop.gain(&drill, product) == 1));
    }

    #[test]
    fn a_wrong_voltage_is_of_little_use() {
        let shop = generate(1);
        let drill = query("cordless drill", &[("voltage", "12 V", true)]);
        assert_eq!(
            gains(&shop, &drill, "cordless drill", "voltage", "12 V"),
            BTreeSet::from([3])
        );
        assert_eq!(
            gains(&shop, &drill, "cordless drill", "voltage", "18 V"),
            BTreeSet::from([1])
        );
        assert_eq!(
            gains(&shop, &drill, "cordless tool battery", "voltage", "18 V"),
            BTreeSet::from([0])
        );
    }

    #[test]
    fn sharing_a_size_does_not_make_a_mattress() {
        let shop = generate(1);
        let mattress = query("mattress", &[("size", "queen", true)]);
        assert_eq!(
            gains(&shop, &mattress, "bed frame", "size", "queen"),
            BTreeSet::from([1])
        );
        assert_eq!(
            gains(&shop, &mattress, "bed frame", "size", "king"),
            BTreeSet::from([0])
        );
        assert_eq!(
            gains(&shop, &mattress, "mattress", "size", "king"),
            BTreeSet::from([1])
        );
        assert_eq!(
            gains(&shop, &mattress, "mattress", "size", "queen"),
            BTreeSet::from([3])
        );
    }

    #[test]
    fn a_colour_is_no_more_than_a_wish() {
        let shop = generate(1);
        let paint = query("radiator paint", &[("colour", "white", false)]);
        assert_eq!(
            gains(&shop, &paint, "radiator paint", "colour", "magnolia"),
            BTreeSet::from([2])
        );
    }
}
