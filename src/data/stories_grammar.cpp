// The grammar of builtin:stories, as text: the words, then the plot. grammar.h says how to read it.
#include "data/stories.h"

namespace picotron {

std::string_view story_grammar() {
  return R"grammar(
words girl name/he/his/kid: Lily/she/her/girl Mia/she/her/girl Lucy/she/her/girl Emma/she/her/girl Sara/she/her/girl Ella/she/her/girl Rosie/she/her/girl Nora/she/her/girl Ruby/she/her/girl Clara/she/her/girl Ida/she/her/girl Molly/she/her/girl
words boy name/he/his/kid: Tom/he/his/boy Ben/he/his/boy Max/he/his/boy Sam/he/his/boy Leo/he/his/boy Jack/he/his/boy Tim/he/his/boy Noah/he/his/boy Theo/he/his/boy Felix/he/his/boy Otto/he/his/boy Henry/he/his/boy
words friend: Anna Kate Zoe Polly Finn Oscar Hugo Peter Alma Greta Victor Paul
words trait: kind brave curious clever shy quiet funny gentle cheerful lively polite careful wise bold patient jolly
words family: mother father sister brother grandma grandpa aunt uncle
words near: river sea lake forest hill farm mill road pond castle harbor tower
words act base/past: run/ran dance/danced skip/skipped hop/hopped jump/jumped march/marched race/raced walk/walked wander/wandered climb/climbed hurry/hurried tiptoe/tiptoed
words place: park garden meadow market field yard barn woods playground orchard valley village
words spot: tree bed chair bench bush rock box table blanket wagon fence ladder
words color: red blue green yellow white purple golden silver brown pink gray black striped spotted sparkly rosy
words size: big small tiny little round soft pretty strange tall thin new grand shiny smooth lovely heavy
words animal: cat dog rabbit duck bird frog mouse fox bear pony turtle squirrel goat lamb hen pig
words toy: ball kite doll boat car drum book hat scarf train puppet balloon whistle bell basket lantern
words neg: sad worried upset scared lonely gloomy nervous cross
words pos: happy glad proud excited thankful joyful merry pleased cozy calm hopeful lucky
words food: bread soup cheese honey cake pie jam pudding porridge popcorn toast stew
words part: eggs apples plums lemons beans carrots onions cherries peas nuts pears figs
words bloom: roses daisies tulips lilies poppies violets bluebells mushrooms buttercups ferns clovers berries
words bug: bees ants butterflies snails beetles spiders worms ladybugs moths crickets fireflies caterpillars
words weather: sunny windy rainy snowy cloudy warm cold foggy
words time: morning afternoon evening day
words adv: quickly slowly softly loudly gently quietly bravely happily kindly sweetly warmly eagerly shyly proudly calmly politely
words number: two three four five six seven eight nine ten twelve
words deed: share help listen wait give work forgive rest

words deed2: try care learn ask play laugh smile dream
words weary: tired sleepy muddy wet dusty thirsty dizzy hungry
words gust: strong cold sudden wild icy loud sharp mighty
words dusk: dusk night noon dark sunset lunch dinner bedtime
words pet: hens goats sheep cows geese pigs kittens puppies lambs ducks ponies mice
words wear: hat coat scarf shirt dress cap belt ribbon
words taste: sweet fresh tasty crunchy warm good creamy fine
words spice: salt sugar butter milk cream flour rice corn

[open]
2 once upon a time , there was a {nature=trait} girl named {hero=girl} . > home
2 once upon a time , there was a {nature=trait} boy named {hero=boy} . > home
2 there once was a {nature=trait} girl with a {?color} {?wear} . her name was {hero=girl} . > home
2 there once was a {nature=trait} boy with a {?color} {?wear} . his name was {hero=boy} . > home

[home]
2 {hero.he} lived by the {?near} with {hero.his} {kin=family} and {?number} {?color} {?pet} . > likes
2 {hero} lived in a {?size} {?color} house with {hero.his} {?trait} {kin=family} . > likes

[likes]
3 {hero} loved to {hobby=act} {?adv} . > day
2 {hero.he} liked to {hobby=act} with {hero.his} {kin} . > day
2 every {?time} , {hero} liked to {hobby=act} by the {?near} . > day

[day]
4 > walk
1 > cook

[walk]
2 one {?weather} {?time} , {hero} went to the {place=place} . > view
2 one {?weather} {?time} , {hero} {hobby.past} {?adv} to the {place=place} . > view

[view]
2 {hero.he} saw {?number} {?color} {?bloom} and {?number} {?size} {?bug} . > plot
2 the {?bloom} were {?color} and the {?bug} were {?color} . > plot
1 > plot

[plot]
3 > animal
2 > lost
2 > share

[animal]
2 a {?size} {?color} {animal=animal} was sitting under the {?spot} . > mood
2 then {hero} met a {?color} {animal=animal} by the {?spot} . > mood

[mood]
2 the {animal} looked {mood=neg} and {?weary} . > ask
2 the {animal} was very {mood=neg} . > ask

[ask]
2 “ why are you so {mood} ? ” asked {hero} {?adv} . > need
2 {hero} asked the {animal} {?adv} why it was so {mood} . > need

[need]
2 “ i lost my {?color} {toy=toy} , ” said the {animal} {?adv} . > search
2 “ i am hungry , ” said the {animal} {?adv} . > feed

[search]
2 {hero} helped the {animal} to look for the {toy} . > seek
2 so they looked for the {toy} under the {?spot} and behind the {?spot} . > seek

[seek]
2 at last , {hero} found the {toy} under the {?size} {?spot} . > thank
2 soon the {animal} saw the {toy} behind the {?color} {?spot} . > thank

[feed]
2 {hero} gave the {animal} some {food=food} and {?number} {?part} . > eat
2 {hero.he} {hobby.past} home and came back with some {food=food} . > eat

[eat]
2 the {animal} ate the {food} {?adv} . > thank
2 “ this is {?taste} {food} ! ” said the {animal} . > thank

[thank]
2 “ thank you , {hero} , ” said the {animal} {?adv} . > friends
2 now the {animal} was {?pos} and not {mood} any more . > friends

[friends]
2 {hero} and the {animal} {hobby.past} in the {place} until {?dusk} . > way
2 {hero} told {hero.his} {kin} about the {?size} {animal} . > way

[lost]
2 {hero} had a {?size} {color=color} {toy=toy} . > trouble
2 {hero.his} {?trait} {kin} gave {hero} a {color=color} {toy=toy} . > trouble

[trouble]
2 but the {?gust} wind blew the {toy} away . > sorrow
2 but a {?size} {?color} {?animal} took the {toy} and ran to the {?near} . > sorrow

[sorrow]
2 {hero} was very {mood=neg} and looked under the {?spot} . > helper
2 {hero.he} felt {mood=neg} and {?weary} . > helper

[helper]
2 then {friend=friend} came with {?number} {?size} {?bloom} . > comfort
2 {hero.his} {?trait} friend {friend=friend} came by . > comfort

[comfort]
2 “ do not be {mood} , {hero} , ” said {friend} {?adv} . > found
2 “ where is your {color} {toy} ? ” asked {friend} {?adv} . > found

[found]
2 {friend} found the {toy} under the {?size} {?spot} . > pals
2 they {hobby.past} to the {?near} and saw the {color} {toy} there . > pals

[pals]
2 {hero} and {friend} played with the {toy} until {?dusk} . > way
2 “ thank you , {friend} , ” said {hero} {?adv} . > way

[share]
2 {friend=friend} was there with a {?size} {color=color} {toy=toy} . > want
2 by the {?spot} , {hero} saw {friend=friend} with a {color=color} {toy=toy} . > want

[want]
2 “ can i play with your {toy} ? ” asked {hero} {?adv} . > reply
2 {hero} wanted to play with the {color} {toy} too . > reply

[reply]
2 “ no , this {toy} is mine ! ” said {friend} {?adv} . > offer
2 “ yes , we can share the {toy} , ” said {friend} {?adv} . > together

[offer]
2 {hero} felt {?weary} and gave {friend} some {food=food} . > trade
2 “ i will give you some {food=food} and {?number} {?part} , ” said {hero} . > trade

[trade]
2 {friend} ate the {food} {?adv} and gave {hero} the {toy} . > together

[together]
2 they played with the {color} {toy} until {?dusk} . > way
2 {hero} and {friend} were both {?pos} and {?weary} . > way

[cook]
2 one {?weather} {?time} , {hero} wanted to make some {food=food} for {hero.his} {kin} . > mix
2 one {?weather} {?time} , {hero} and {hero.his} {kin} made some {?taste} {food=food} . > mix

[mix]
2 {hero.he} put {?number} {?color} {?part} and some {?spice} in a {?size} pot . > ready
2 “ we need {?number} {?part} and some {?spice} , ” said {hero.his} {kin} {?adv} . > ready

[ready]
2 soon {friend=friend} came by and wanted some {food} too . > taste
2 the house smelled like {food} , and {friend=friend} {hobby.past} to the door . > taste

[taste]
2 “ this is very {?taste} {food} , ” said {friend} {?adv} . > treat
2 {friend} ate the {food} {?adv} with {?number} {?part} . > treat

[treat]
2 they {hobby.past} by the {?near} until {?dusk} . > way
2 {hero} and {friend} were both {?pos} and {?weary} . > way

[way]
2 on the way home , {hero} counted {?number} {?color} {?bloom} and {?number} {?pet} . > close
2 at home , {hero.he} ate {?number} {?part} and some {?taste} {?food} . > close
1 > close

[close]
2 {hero} was very {?pos} and {?weary} . > moral
2 {hero.his} {kin} was {?pos} too . > moral
1 > moral

[moral]
2 {hero} learned that it is good to {?deed} and to {?deed2} . > end
2 everyone said that {hero} was a {nature} {hero.kid} . > end

[end]
1 <story> > open
)grammar";
}

}  // namespace picotron
