import { parseStyle } from './style.ts';

test.each([
  ['ink', { lora: 'ink' }],
  ['ink:0.8', { lora: 'ink', weight: 0.8 }],
  ['ink@3:-0.5', { lora: 'ink@3', weight: -0.5 }],
  ['ink:+1', { lora: 'ink', weight: 1 }],
  ['ink:.5', { lora: 'ink', weight: 0.5 }],
  ['./ink.v2.safetensors:2', { lora: './ink.v2.safetensors', weight: 2 }],
  ['C:\\ink.safetensors', { lora: 'C:\\ink.safetensors' }],
  ['', null],
  [':0.8', null],
  ['ink:', null],
  ['ink:strong', null],
  ['ink:0.8:1', null],
])('the style %j', (text, style) => {
  expect(parseStyle(text)).toEqual(style);
});
