"""Ordinary sentences that belong to no label: the yardstick of the zero-shot tagger.

A label's similarity to a text counts only as far as it exceeds its similarity to these. They were written for this
project: small talk, instructions and statements about everyday things, stray words, noise of OCR, other languages.
Changing one changes the version of the tagger.
"""

BACKGROUND: tuple[str, ...] = tuple(
    line.strip()
    for line in """
I thought you had already left.
What time are we supposed to meet them?
It doesn't matter, we can do it another day.
Could you hand me the other one, please?
I told her twice and she still forgot.
There was nobody there when I got back.
Let me think about it for a moment.
You should have said something earlier.
That was not the answer I expected.
He asked me the same question yesterday.
They live two doors down from my aunt.
I'm not sure which one is mine.
We'll see what happens next.
Are you coming with us or staying here?
She put the letter back into the drawer.
It took longer than I had planned.
Everything is still where you left it.
Someone must have moved it last night.
I will explain it to you on the way.
No, I never said that to anyone.
Do you remember what it was called?
He stood by the window and waited.
Just leave it on the chair over there.
Maybe it's better if we don't talk about it.
I have been trying to reach you all day.
We were just about to go.
They said it would be ready by noon.
You can have mine if you want.
What are you doing here?
I need you to listen to me.
This one is a little longer than the other.
Nothing has changed since then.
He looked at her and did not answer.
Please wait here until I come back.
That's what I was trying to tell you.
My brother said the same thing.
How many of them are there?
I'll be right back.
Why didn't you tell me?
We agreed on that a long time ago.
Hello.
Yes, of course.
Thank you.
Thanks a lot.
Excuse me.
Oh, I see.
Sure, why not?
Never mind.
Look at that.
Hey, come here.
Well, here we are.
Not now.
Go ahead.
I know, I know.
What?
Who is it?
Hmm, let's see.
So anyway.
Exactly.
All right then.
The lid fits on top of the jar.
The carpet is two metres wide and four metres long.
Cut the cardboard along the line with a ruler.
The key is under the mat.
Tighten the bolt and check that the frame is level.
The table has four legs and a round top.
Fill in the form and sign at the bottom.
The lamp stands in the corner next to the bookcase.
Wipe the glass with a dry cloth.
Hang the coat on the hook behind the door.
The second drawer holds envelopes and stamps.
Tie the rope around the post with a double knot.
The walls are grey and the ceiling is white.
The ladder is too short for that roof.
Use a pencil to mark where the hole should be.
The clock on the wall is five minutes slow.
The bag is made of canvas and has two pockets.
Water the plants twice a week.
Stack the chairs at the back of the room.
The button came off, so I sewed it on again.
Part three of nine.
Number twenty-six, second row.
Page forty, line seven.
Row eleven, seat four.
Version two point one.
The list has six entries.
Monday to Friday, nine to five.
Chapter one.
Continued on the next page.
To be continued.
The end.
Subtitles and translation.
Subtitle line one.
Example text for a caption.
This is only a trial.
One two, one two, check.
Written and produced by.
All rights reserved.
Some rights may apply.
www dot website dot com
[music]
[music continues]
[noise]
[door closes]
[footsteps]
(silence)
(speaks softly)
♪
00:10:20:05
2019-01-31 08:15:00
10:42
1920x1080
REC
A
K L M
N/A
ok
uh huh
table green seven under slowly
window paper eleven soft corner
spoon quiet ladder thirty beside
and the of a to with for
sdfg hjkl wert uiop
xq zvb mnp rrt
I1l| O0o rn m vv w
tne 0f anb w1th fcr
::; -- // .. ||
8Z3 K0P 77X
Quis custodiet ipsos, vale et memento.
Nunc vitae nulla eget magna tempus pulvinar.
Ich habe das gestern schon gesagt.
Das steht auf der anderen Seite.
Je ne sais pas ce qu'il veut dire.
Il est parti sans nous attendre.
No me acuerdo de cómo se llama.
Lo dejé encima de la mesa.
Non so dove siano andati.
Eu não sei o que aconteceu.
Ik heb het hem al verteld.
Det var inte det jag menade.
Nie wiem, o co ci chodzi.
Я не знаю, где это лежит.
Это было вчера вечером.
我想我们应该走了
他说他明天会来
もう一度言ってください
그건 내가 한 말이 아니야
لا أعرف أين وضعته
""".splitlines()
    if line.strip()
)
