"""The words of episodes: common English words, written down here so that everyone has the same."""

from __future__ import annotations

WORDS = tuple(
    """
    acorn actor alarm album alley amber anchor angle ankle apple apron arch arena armor arrow artist atlas attic aunt
    author autumn avenue award baby badge baker balcony ball bamboo banana band bank banner barber bark barn barrel
    basil basin basket bath beach bead beam bean bear beard beast beaver bed beetle bell belt bench berry bike bird
    biscuit blade blanket blossom board boat body bolt bone bonnet book boot border bottle bowl box boy bracket brain
    branch brass bread brick bride bridge broom brother brush bubble bucket buckle budget bull bundle bus bush butcher
    butter button cabin cabinet cable cactus cage cake camel camera camp canal candle candy cannon canoe canvas canyon
    cap captain car carbon card cargo carpet carrot cart castle cat cattle cave cedar ceiling cell cement chain chair
    chalk chapel cheese cherry chest chicken child chimney chin church circle circus city clay clerk cliff clock cloth
    cloud clover club coach coal coast coat coconut coffee coin collar comb comet compass cook copper coral cord cork
    corn corner cotton couch cousin cow cradle crane crate crayon creek cricket crow crowd crown crust crystal
    cup curtain curve cushion dagger dairy dance dawn deck deer dentist desert desk diamond diary dinner disk ditch
    doctor dog doll dolphin donkey door dragon drain drawer dream dress drum duck dust eagle ear earth easel edge egg
    elbow elm engine evening eye face factory fairy falcon farm farmer father feather fence fern ferry fever field fig
    finger fire fish fist flag flame flask flood floor flour flower flute foam fog folder food foot forest fork fossil
    fountain fox frame friend frog frost fruit fuel funnel fur galaxy garage garden garlic gate gear ghost giant ginger
    girl glacier glass globe glove glue goat goose gown grain grape grass gravel grave guard guest guitar gum hair
    hall hammer hand handle harbor harp hat hawk head heart hedge heel helmet hen herb hero hill hinge hive hockey
    honey hood hook horn horse hotel hour house hunter hut ice idol inch ink insect iron island ivory ivy jacket jail
    jam jar jaw jelly jewel judge jug juice jungle jury kettle key kitchen kite kitten knee knife knight knot ladder
    lake lamb lamp lantern lawn lawyer leaf leather legend lemon lens lettuce library lid lily lime lion lip list
    lizard lobby lock log loom lunch lung machine magnet maid map maple marble market mask mast mat meadow meal medal
    melon metal mill miner mint mirror mist monk monkey month moon morning moss moth mother motor mouse mouth mud mule
    museum music nail napkin neck needle nephew nest net night noise noodle nose nurse nut oak oasis oat ocean office
    olive onion opera orbit orchard organ otter oven owl oyster paddle page paint palace palm pan panda panel paper
    parade parcel park parrot path peach peanut pear pearl pebble pen pencil penny pepper piano picture pie pig pigeon
    pillow pilot pin pipe pirate pizza plane planet plank plant plate player plow plum pocket poem poet pond pony
    porch potato powder prince prison puddle pump puppet puppy purse puzzle queen quilt rabbit radar radio raft rail
    rain ranch razor reef rhyme ribbon rice rider rifle ring river road robe robin robot rocket roof room root rope
    rug ruler sack saddle sail sailor salad salmon salt sand sauce saw scarf school scout screen seal season seed
    shadow shark shed sheep shelf shell ship shirt shoe shop shore shovel singer sink sister skate skirt sky sled
    sleeve snail snake snow soap sock sofa soil soldier song soup spade spear spider sponge spoon spring squid stable
    stage stair stamp star statue steam steel stem stone store storm stove straw stream street string student sugar
    suit summer sun swamp swan sword table tail tailor tank tape teacher tent theater thread throne thumb ticket tiger
    tile timber toad toast toe tomato tongue tooth torch tower town toy tractor train tray tree truck trumpet trunk
    tulip tunnel turkey turtle uncle valley van vase vault veil velvet vest village vine violin voice wagon waist
    waiter wall walnut wasp watch water wax weather web wedding wheat wheel whistle wife willow window wing winter
    wire wizard wolf wood wool worm wrist yard yarn zebra zone
    """.split()  # noqa: SIM905 - seven hundred quoted words read worse
)
"""The words of episodes; every third is held out and never occurs in an episode of the training text."""

LABELS = (
    *("red", "blue", "green", "gold", "grey", "pink", "black", "white", "brown", "purple", "orange", "silver"),
    *("violet", "scarlet", "teal", "cream"),
)
"""What episodes call things; the last four are held out."""

ATTRIBUTES = (
    ("small", "large"),
    ("young", "old"),
    ("wet", "dry"),
    ("warm", "cold"),
    ("soft", "hard"),
    ("bright", "dark"),
    ("quick", "slow"),
    ("clean", "dirty"),
)
"""What things of rule episodes may be, one of each pair."""
