/** What the bundled model was made for: things, colours and two styles. */
export const DEMO_PROMPTS: readonly string[] = Object.freeze([
  'a red apple on a blue background',
  'a pizza on a yellow background',
  'a cat, noto style',
  'flat illustration of a sailboat',
  'a 3d robot, glossy style',
  'a rocket',
  'two yellow stars on a dark blue background',
  'a purple elephant',
  'a birthday cake, glossy style',
  'a tree on a pink background',
  'a smiling face with sunglasses',
  'a butterfly on a black background',
]);
