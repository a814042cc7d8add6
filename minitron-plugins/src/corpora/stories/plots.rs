//! What the stories are made of.

pub(super) const GIRLS: &[&str] = &[
    "Anna", "Lily", "Mia", "Rosa", "Sara", "Nina", "Ella", "June", "Kim", "Zoe",
];
pub(super) const BOYS: &[&str] = &[
    "Tom", "Ben", "Sam", "Max", "Leo", "Finn", "Jack", "Omar", "Paul", "Tim",
];
pub(super) const COLOURS: &[&str] = &[
    "red", "blue", "green", "yellow", "white", "black", "pink", "brown",
];
pub(super) const COATS: &[&str] = &["brown", "white", "black", "gray"];
pub(super) const PLACES: &[&str] = &[
    "the park",
    "the garden",
    "the forest",
    "the yard",
    "the field",
];

/// Sentences with `{slots}` and `[choices|between|bars]`, and rows of what fills the numbered
/// slots. Each names the hero, the friend and slot 1, so a story's text settles its cast, and with
/// it its split.
pub(super) struct Plot {
    pub(super) lines: &'static [&'static str],
    pub(super) rows: &'static [&'static [&'static str]],
}

pub(super) const PLOTS: &[Plot] = &[
    Plot {
        lines: &[
            "[One day, {H} got|{H} had] a {c} {1}. {He} took the {1} to {2} to {4}.",
            "[But soon|Then] the {c} {1} was gone. {H} looked and looked, but {he} could not find \
             it[.| at all.]",
            "{H} was [very |]sad and began to cry. {F} came and said, \"I will help you look for \
             the {1}.\"",
            "[Soon|At last] {F} found the {1} {3}. {H} was [so |]happy to have {his} {c} {1} back.",
        ],
        rows: &[
            &["ball", "the park", "under a bench", "kick it"],
            &["kite", "the hill", "behind a rock", "fly it"],
            &["boat", "the river", "in the tall grass", "sail it"],
            &["doll", "the garden", "behind a bush", "play with it"],
            &["book", "the school", "under a desk", "read it"],
            &["drum", "the yard", "behind the gate", "play it"],
        ],
    },
    Plot {
        lines: &[
            "{H} had a {c} {1} [and loved it very much|that {he} loved very much].",
            "[One day|But today], the {1} {2}. Now it {3}, and {H} was [very |]sad.",
            "{He} took the {1} to {F} because it {3}.",
            "{F} [had|got] {4}. [Together they|{Fhe} sat down with {him}, and they] {5}.",
            "[Soon|Now] the {c} {1} was as good as new, and {H} [was happy|smiled at {F}].",
        ],
        rows: &[
            &[
                "kite",
                "flew into a tree",
                "had a hole",
                "some tape",
                "covered the hole with tape",
            ],
            &[
                "cup",
                "fell on the floor",
                "had a crack",
                "some glue",
                "filled the crack with glue",
            ],
            &[
                "shirt",
                "caught on a nail",
                "had a tear",
                "some thread",
                "closed the tear with thread",
            ],
            &[
                "cart",
                "hit a stone",
                "had a loose wheel",
                "a hammer",
                "fixed the wheel with the hammer",
            ],
            &[
                "boat",
                "hit a rock",
                "had a leak",
                "some wax",
                "stopped the leak with wax",
            ],
        ],
    },
    Plot {
        lines: &[
            "[One day, |]{H} went for a walk in {p} and saw a [little|small] {coat} {1}.",
            "The {1} was {2}. {H} felt sorry for it, so {he} called {F}.",
            "{F} [came fast|ran to {him}] with {3}. {Fhe} [put|set] it down for the {1}.",
            "The {1} {4}. Now it was not {2} any more.",
            "[After that|From that day], the {coat} {1} was a friend of {H} and {F}.",
        ],
        rows: &[
            &["bird", "hungry", "a bag of seeds", "ate all the seeds"],
            &["cat", "cold", "a warm blanket", "slept under the blanket"],
            &["dog", "thirsty", "a bowl of water", "drank all the water"],
            &["rabbit", "hungry", "a big carrot", "ate the whole carrot"],
            &[
                "kitten",
                "stuck in a tree",
                "a long ladder",
                "came down the ladder",
            ],
            &[
                "duck",
                "stuck in the mud",
                "a long board",
                "walked out over the board",
            ],
        ],
    },
    Plot {
        lines: &[
            "{H} and {F} [were playing|wanted to play] in {p}.[| It was a lot of fun.]",
            "[But then|Then] {1}, and {H} was {2}. \"I do not like to be {2},\" {he} said.",
            "{F} [had an idea. {Fhe} |]ran home and came back with {3}.",
            "{H} [took|was glad to have] {4} and {5}. Soon {he} was not {2} any more.",
            "{He} said, \"Thank you, {F},\" and they played [again|until night].",
        ],
        rows: &[
            &[
                "it began to rain",
                "wet",
                "an umbrella",
                "the umbrella",
                "stood under it",
            ],
            &[
                "it began to snow",
                "cold",
                "a warm coat",
                "the coat",
                "put it on",
            ],
            &[
                "the sun came out",
                "hot",
                "a glass of cold water",
                "the glass",
                "drank the cold water",
            ],
            &[
                "it got dark",
                "scared",
                "a bright lamp",
                "the lamp",
                "turned it on",
            ],
        ],
    },
    Plot {
        lines: &[
            "{H} had {1} for lunch. {F} had [no lunch|nothing to eat] and was [very |]hungry.",
            "{H} saw that {F} was sad, so {he} gave {fhim} half of the {2}. {F} said, \"You are \
             kind.\"",
            "The next day, {F} had {3}, but {H} had no lunch and was [very |]hungry.",
            "{F} [did not forget.|remembered.] {Fhe} gave {him} half of the {4}.",
            "They ate together, and {H} and {F} were both [happy|full].",
        ],
        rows: &[
            &["an apple", "apple", "a sandwich", "sandwich"],
            &["a sandwich", "sandwich", "a pie", "pie"],
            &["a pie", "pie", "some cheese", "cheese"],
            &["some bread", "bread", "an apple", "apple"],
            &["some cheese", "cheese", "some bread", "bread"],
        ],
    },
    Plot {
        lines: &[
            "{H} was [afraid|scared] of {1}. {2}. {H} [began to shake|wanted to hide].",
            "{F} held {his} hand and said, \"Do not be afraid. I have {3}.\"",
            "{F} {4}, and {H} [watched|looked at] {fhim}. [Then|Soon] {he} {5} too.",
            "[At last|Now] {he} was [brave and |]not [afraid|scared] of {1} any more.",
        ],
        rows: &[
            &[
                "the dark",
                "One night, the room was black",
                "a little lamp",
                "turned on the lamp",
                "held the lamp",
            ],
            &[
                "the storm",
                "One night, the wind was loud",
                "a happy song",
                "sang the song",
                "sang the song",
            ],
            &[
                "the lake",
                "One day, it was time to swim",
                "a big ring",
                "swam with the ring",
                "swam with the ring",
            ],
            &[
                "the big dog",
                "One day, the dog stood at the gate",
                "a bone",
                "gave the dog the bone",
                "touched the dog",
            ],
        ],
    },
    Plot {
        lines: &[
            "It was the birthday of {F}. {H} wanted to make {1} for {fhim}.",
            "But {he} had no {2}, so {he} [could not start|was sad].",
            "[Then|So] {H} went to {3} and got some {2}. {He} [ran home|came back] and made {4}.",
            "{F} saw {4} and [laughed|smiled]. \"I love it!\" {fhe} said and gave {him} a big hug.",
        ],
        rows: &[
            &["a cake", "eggs", "the farm", "the cake"],
            &["a picture", "paint", "the shop", "the picture"],
            &["a scarf", "wool", "the market", "the scarf"],
            &["a pie", "apples", "the garden", "the pie"],
            &["a toy boat", "wood", "the forest", "the toy boat"],
        ],
    },
    Plot {
        lines: &[
            "{F} said to {H}, \"Please get me {1}.\" So {H} went to {2} with a {c} basket.",
            "{He} put the {3} in the {c} basket. But [then|on the way back] {he} was lost and \
             [afraid|scared].",
            "[Then|At last] {he} {4} and {5}. Soon {he} was home again.",
            "{F} saw the {c} basket with the {3} and was [so |very |]happy. \"Thank you, {H},\" \
             {fhe} said.",
        ],
        rows: &[
            &[
                "some berries",
                "the forest",
                "berries",
                "saw the river",
                "walked along the river",
            ],
            &[
                "some fish",
                "the lake",
                "fish",
                "saw the path",
                "walked along the path",
            ],
            &[
                "some bread",
                "the market",
                "bread",
                "heard the bell",
                "went to the bell",
            ],
            &[
                "some flowers",
                "the hill",
                "flowers",
                "saw the light of the house",
                "went to the light",
            ],
        ],
    },
];
