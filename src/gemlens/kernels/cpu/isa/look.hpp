// Attention of a few tokens, in float32.
#pragma once

#include "../kernels.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {

void look(const Look& at);
void to_brains(const float* numbers, std::int64_t count, std::uint16_t* brains);
void to_bytes(const float* numbers, std::int64_t count, std::int8_t* bytes);

}  // namespace GEMLENS_ISA
}  // namespace gemlens
